"""Where losses stand still: for a run, as the doctor needs it (`values`), and as a page for people (`page`)."""

from twoview.watch.standstill_table import TABLE, Get, Standstill


def values(method: str, get: Get) -> list[tuple[float, Standstill]]:
    """Those of a method, by the name of its class, in a configuration; none where a key is missing."""
    rows = ((_value(standstill, get), standstill) for standstill in TABLE.get(method, ()))
    return [(value, standstill) for value, standstill in rows if value is not None]


def _value(standstill: Standstill, get: Get) -> float | None:
    try:
        return float(standstill.value(get))
    except (TypeError, ValueError):  # the configuration lacks what the formula needs
        return None


def page() -> str:
    """Markdown: every number of the examples in ascending order, whose it is, what it means and what to do."""
    rows = []
    for method, standstills in TABLE.items():
        for standstill in standstills:
            for example in standstill.examples:
                value = standstill.value(lambda key, default=None, known=example: known.get(key, default))
                setting = ", ".join(f"{key.removeprefix('model.')} {setting}" for key, setting in example.items())
                rows.append((value, method, standstill, setting))
    lines = [
        "# My loss is stuck at ...",
        "",
        "Losses stand still at numbers that say what went wrong. Look yours up, to two or three digits: a report of "
        "6.9287 is the 6.9305 of SimCLR in batches of 512. N is the global batch size, D the width of the projections, "
        "K the number of prototypes or the length of the queue, T the temperature; w, v and eps are weights of the "
        "method. `twoview doctor run=<folder>` does this for a run, with the readings that the loss alone cannot give.",
        "",
        "| loss | method | formula, setting | what it means | what to do | look at |",
        "|---|---|---|---|---|---|",
    ]
    for value, method, standstill, setting in sorted(rows, key=lambda row: (row[0], row[1])):
        formula = f"{standstill.formula}; {setting}" if setting else standstill.formula
        meaning = standstill.meaning + (" (**collapse**)" if standstill.collapsed else "")
        lines.append(f"| {value:.5g} | {method} | {formula} | {meaning} | {standstill.remedy} | {standstill.look_at} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import sys

    sys.stdout.write(page())
