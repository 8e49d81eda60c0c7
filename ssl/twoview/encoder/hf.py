"""Transformers of Hugging Face's, from a folder, as encoders of texts."""

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from twoview.encoder.bag import checked
from twoview.encoder.weights import PRETRAINED, start_from
from twoview.errors import UserError

log = logging.getLogger(__name__)

FIRST = 4  # the number of the tokenizer's token 0, as `twoview.data.text.words` counts


class Transformer(nn.Module):
    """A network of transformers' over the tokens of a text: texts (B, 3, L) -> h (B, its width).

    `model`: a folder as `save_pretrained` leaves it: config.json, model.safetensors, and the tokenizer, whose file cuts
    the texts (`data.tokenizer=<folder>/tokenizer.json`) and whose signs stand around them. `pool`: "mean" of all
    tokens, or that of the first, "cls". `weights`: "pretrained", those in the folder; or others to start from. Its
    dropout works in training alone; with it two equal views differ (SimCSE, Gao et al., EMNLP 2021, arXiv 2104.08821).
    No code in the folder is run. The folder has to be there whenever the encoder is built.
    """

    signs: Tensor

    def __init__(
        self, model: str | None = None, pool: Literal["mean", "cls"] = "mean", weights: str = PRETRAINED
    ) -> None:
        super().__init__()
        if model is None:
            raise UserError("encoder=hf needs a folder of a transformers model: encoder.model=<folder>")
        if pool not in ("mean", "cls"):
            raise UserError(f"encoder.pool={pool!r} is neither mean nor cls")
        transformers = _transformers()
        folder = str(Path(model).expanduser())
        config, signs = _read(transformers, folder)
        network = transformers.AutoModel.from_config(config)
        self.package = f"transformers {transformers.__version__}"
        self.pool, self.words, self.dim = pool, config.vocab_size + FIRST, config.hidden_size
        self.most = getattr(config, "max_position_embeddings", None)
        self.around = (
            None if None in (signs.cls_token_id, signs.sep_token_id) else (signs.cls_token_id, signs.sep_token_id)
        )
        pad = signs.pad_token_id or 0
        of = [pad, signs.unk_token_id, signs.mask_token_id, pad]  # padding, unknown, mask, blank
        self.register_buffer("signs", torch.tensor([pad if sign is None else sign for sign in of]), persistent=False)
        if getattr(network, "pooler", None) is not None:
            network.pooler = None  # of the next-sentence task: it would not be trained
        start_from(
            network,
            weights,
            lambda: transformers.AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            ).state_dict(),
        )
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        ids, weight = checked(x, self.words)
        tokens = torch.where(ids < FIRST, self.signs[ids.clamp(max=FIRST - 1)], ids - FIRST)  # (B, L)
        seen = weight > 0
        if self.around is not None:
            first, last = self.around
            end = (ids != 0).sum(1, keepdim=True) + 1  # (B, 1)
            tokens = nn.functional.pad(tokens, (1, 0), value=first)
            tokens = torch.cat([tokens, self.signs[:1].expand(len(tokens), 1)], dim=1)
            tokens = tokens.scatter(1, end, last)
            seen = nn.functional.pad(seen, (1, 1), value=False)
            seen = seen.scatter(1, torch.cat([torch.zeros_like(end), end], dim=1), True)
        if self.most is not None and tokens.shape[1] > self.most:
            raise UserError(
                f"the model takes {self.most} tokens, and a text has {tokens.shape[1]}: set data.length="
                f"{self.most - (tokens.shape[1] - ids.shape[1])} or less"
            )
        out = self.network(input_ids=tokens, attention_mask=seen.long()).last_hidden_state  # (B, L, D)
        if self.pool == "cls":
            return out[:, 0]
        share = seen[..., None].to(out)
        return (out * share).sum(1) / share.sum(1)


def _read(transformers: Any, folder: str) -> tuple[Any, Any]:
    """Configuration and tokenizer of a folder. UserError where it has none."""
    if not Path(folder).is_dir():
        raise UserError(f"encoder.model={folder} is no folder: give one that save_pretrained has left")
    try:
        return (
            transformers.AutoConfig.from_pretrained(folder, local_files_only=True),
            transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True),
        )
    except Exception as error:  # transformers raises half a dozen kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"encoder.model={folder} holds no model and tokenizer of transformers: {reason[:200]}"
        ) from None


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError:
        raise UserError("encoder=hf needs transformers: pip install 'twoview[hf]'") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers
