"""How often a study of a few seeds finds an effect, and how often it raises a false alarm, in simulated studies.

    python benchmarks/power.py [studies] [out]    # half a minute

Six arms and three seeds; every seed shifts all arms of a study by a normal number of standard deviation 3, and the
residuals are normal of standard deviation 1. In one half of the studies one arm is better than the reference by 4
standard deviations, in the other none is. `compare` (`twoview.stats.blocks`, the noise from all arms) is set beside
paired t tests of each arm by itself, both corrected by Holm's method.
"""

import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import record
from rich.console import Console
from scipy.stats import ttest_rel

from twoview.stats.blocks import compare

ARMS, SEEDS, EFFECT, SPREAD = 6, 3, 4.0, 3.0


def simulated(rng: np.random.Generator, effect: float) -> np.ndarray:
    """Accuracies (arms, seeds) of a study in standard deviations; arm 1 has the effect, arm 0 is the reference."""
    values = rng.normal(size=(ARMS, SEEDS)) + SPREAD * rng.normal(size=SEEDS)
    values[1] += effect
    return values


def by_itself(values: np.ndarray) -> list[bool]:
    """Whether each arm but the reference differs from it by its own paired t test."""
    p = np.array([ttest_rel(arm, values[0]).pvalue for arm in values[1:]])
    order = np.argsort(p)
    held = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))  # Holm 1979
    found = np.empty(len(p), dtype=bool)
    found[order] = held < 0.05
    return found.tolist()


def pooled(values: np.ndarray) -> list[bool]:
    arms = {str(a): dict(enumerate(row)) for a, row in enumerate(values)}
    verdicts = compare(arms, "0")
    return [verdicts[str(a)].verdict in ("better", "worse") for a in range(1, ARMS)]


def main() -> None:
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent / "results" / "power.json"
    began, rng = time.perf_counter(), np.random.default_rng(0)
    found = {"pooled": 0, "each arm by itself": 0}
    alarms = dict.fromkeys(found, 0)
    for _ in range(studies):
        effect, none = simulated(rng, EFFECT), simulated(rng, 0.0)
        for name, judge in {"pooled": pooled, "each arm by itself": by_itself}.items():
            found[name] += judge(effect)[0]
            alarms[name] += any(judge(none))
    console = Console()
    result = {"studies": studies, "arms": ARMS, "seeds": SEEDS, "effect_in_standard_deviations": EFFECT}
    for name in found:
        shares = {"effect_found": found[name] / studies, "studies_with_a_false_alarm": alarms[name] / studies}
        result[name.replace(" ", "_")] = shares
        console.print(
            f"{name}: effect found in {found[name] / studies:.1%}, false alarm in {alarms[name] / studies:.1%}"
        )
    record.write(out, result, began, {"scipy": version("scipy")}, console)


if __name__ == "__main__":
    main()
