"""What every method promises, found by looking into `ssl/twoview/model` and `configs/model`.

A method that is added there is tested here without another line, if its configuration builds it. `shrunk` makes the
networks tiny; `PLAY` says what a method wants in place of two equal views of a sample.
"""

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from twoview.data.batches import Batch
from twoview.errors import UserError
from twoview.model.base import Begin, Method
from twoview.optim.recipe import Recipe
from twoview.parallel import devices
from twoview.parallel.norm import global_batch_norm

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "configs" / "model").glob("*.yaml"))
FILES = sorted(path.stem for path in (ROOT / "ssl" / "twoview" / "model").glob("*.py") if path.stem != "__init__")
SMALL = {  # what makes a method tiny, wherever its configuration has the key
    "hidden_dim": 12,
    "out_dim": 6,
    "queue_size": 20,
    "prototypes": 10,
    "group": 16,
    "directions": 8,
    "split_batch_norm": 1,
}
N, SIDE, CLASSES = 16, 4, 3


class Flat(nn.Module):
    """An encoder with batch statistics, of views of any size."""

    dim = 10

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, kernel_size=2, stride=2)
        self.norm = nn.BatchNorm1d(10)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.conv(x).mean(dim=(2, 3))))


def shrunk(name: str) -> Any:
    config = OmegaConf.create({"loss": {"chunk": None}, "model": OmegaConf.load(ROOT / f"configs/model/{name}.yaml")})

    def walk(node: Any) -> None:
        for key, value in node.items():
            if OmegaConf.is_dict(value):
                walk(value)
            elif key in SMALL and value:
                node[key] = SMALL[key]

    walk(config.model)
    return config.model


def make(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> Method:
    torch.manual_seed(0)
    recipe = Recipe(torch.optim.SGD, lr_per_256=0.05, lr_scaling="none")
    try:
        model: Method = instantiate(shrunk(name), encoder=Flat(), optimizer=recipe, **options)
    except InstantiationException as error:
        raise (error.__cause__ if isinstance(error.__cause__, UserError) else error) from None
    model.begin(Begin(global_batch_size=N, steps=50, epochs=2))
    return model.to(dtype).train()


def batch(step: int = 0, dtype: torch.dtype = torch.float32, views: int = 2, n: int = N, small: int = 0) -> Batch:
    """Views of `n` samples, which look like their class; the last `small` views of half the size."""
    g = torch.Generator().manual_seed(step)
    index = torch.randperm(3 * N, generator=g)[:n]
    classes = 2 * torch.randn(CLASSES, 3, 1, 1, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    content = classes[index % CLASSES] + torch.randn(n, 3, SIDE, SIDE, generator=g, dtype=torch.float64)
    made = [content + 0.5 * torch.randn(n, 3, SIDE, SIDE, generator=g, dtype=torch.float64) for _ in range(views)]
    made[views - small :] = [view[..., : SIDE // 2, : SIDE // 2] for view in made[views - small :]]
    return Batch(tuple(view.to(dtype) for view in made), index, index % CLASSES)


def many_views(name: str) -> bool:
    return type(make(name)).views_needed[1] is None


SEVERAL = [name for name in NAMES if many_views(name)]


def advance(model: Method, optimizer: torch.optim.Optimizer, given: Batch) -> Tensor:
    """A step as Lightning makes it."""
    loss = model.step(given).loss
    optimizer.zero_grad()
    loss.backward()
    if devices.world_size() > 1:
        for parameter in model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= devices.world_size()
    model.on_before_optimizer_step(optimizer)
    optimizer.step()
    model.after_step()
    return loss.detach()


def optimizer_of(model: Method) -> torch.optim.Optimizer:
    return model.recipe.build(model, N, steps=50, epochs=2, roles=model.roles())[0]


# What there is


def test_every_file_has_a_configuration_and_every_configuration_a_file() -> None:
    assert sorted(set(FILES) - {"base"}) == NAMES
    assert len(NAMES) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_read_without_opening_other_files(name: str) -> None:
    source = (ROOT / f"ssl/twoview/model/{name}.py").read_text()
    assert source.count("\n") <= (120 if name != "moco" else 175)
    assert "arXiv" in source.split('"""')[1]
    own = [line for line in source.splitlines() if line.startswith("from twoview.model.")]
    assert all(".base " in line or ".part." in line for line in own)


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_a_configuration_has_the_default_of_the_class(name: str) -> None:
    config = OmegaConf.load(ROOT / f"configs/model/{name}.yaml")
    parameters = inspect.signature(type(make(name)).__init__).parameters
    own = {key for key in config if key != "_target_"}
    assert own == set(parameters) - {"self", "encoder", "optimizer"}


# The loss


@pytest.mark.parametrize("name", NAMES)
def test_an_outcome_is_scalars_and_only_the_loss_has_a_gradient(name: str) -> None:
    outcome = make(name).step(batch())
    assert outcome.loss.shape == ()
    assert outcome.loss.requires_grad
    for value in [*outcome.numbers.values(), *([] if outcome.chance is None else [outcome.chance])]:
        assert value.shape == ()
        assert not value.requires_grad
        assert value.isfinite()


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"moco", "ressl"}))
def test_views_may_be_swapped(name: str) -> None:
    """Not MoCo's and ReSSL's: one of their views is the query, or the strong one."""
    given = batch(dtype=torch.float64)
    swapped = given._replace(views=given.views[::-1])
    losses = [make(name, torch.float64).step(b).loss for b in (given, swapped)]
    torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_samples_does_not_matter(name: str) -> None:
    given, order = batch(dtype=torch.float64), torch.randperm(N, generator=torch.Generator().manual_seed(5))
    permuted = Batch(tuple(view[order] for view in given.views), given.index[order], given.label[order])
    losses = [make(name, torch.float64).step(b).loss for b in (given, permuted)]
    torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_what_learns_and_nothing_else(name: str) -> None:
    model = make(name)
    for step in range(3):  # queues fill
        model.step(batch(step))
    model.step(batch(3)).loss.backward()
    learning = {key for key, p in model.named_parameters() if p.requires_grad}
    heads = tuple(model.heads())
    assert all(key.startswith(("encoder.", "prototypes.", *(f"{head}." for head in heads))) for key in learning)
    for key, parameter in model.named_parameters():
        if key in learning:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
        else:
            assert parameter.grad is None, key
    for part in (model.encoder, *model.heads().values()):
        assert any(p.grad is not None and p.grad.abs().max() > 1e-7 for p in part.parameters())
    if model.teacher is not None:
        assert not any(p.requires_grad for p in model.teacher.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_read_by_those_alone_that_say_so(name: str) -> None:
    given = batch()
    losses = [make(name).step(given._replace(label=label)).loss for label in (given.label, torch.full((N,), -1))]
    assert losses[0].equal(losses[1]) != type(make(name)).reads_labels


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_computed_in_float32_under_autocast(name: str) -> None:
    """Networks in bfloat16, whose outputs are taken as they are; here these are exact in bfloat16."""
    model, given = make(name), batch()
    exact = copy.deepcopy(model)
    for network in (model, exact):
        rounded(network)
    expected = exact.step(given).loss
    with torch.autocast("cpu", torch.bfloat16):
        found = model.step(given).loss
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def rounded(model: Method) -> None:
    """Makes what comes out of the networks the same in bfloat16 and float32: passes without autocast, then rounded."""

    def through(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def passed(x: Tensor, *_: Any) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return network(x.float()).bfloat16()

        return passed

    for part in [*model.children()]:
        if not isinstance(part, nn.ModuleList) and any(p.ndim for p in part.parameters()):
            if type(part).__name__ == "Prototypes":
                continue
            part.forward = through(part.forward)  # type: ignore[method-assign]


# Several views


@pytest.mark.parametrize("name", SEVERAL)
def test_a_view_more_is_another_term_and_local_views_may_be_exchanged(name: str) -> None:
    given = batch(dtype=torch.float64, views=5, small=3)
    two = given._replace(views=given.views[:2])
    v = given.views
    if name in ("simsiam", "supcon", "wmse"):  # views of one size
        given = batch(dtype=torch.float64, views=5)
        v = given.views
    losses = [make(name, torch.float64).step(b).loss for b in (two, given)]
    assert losses[1].isfinite()
    assert abs(losses[0] - losses[1]) > 1e-6
    exchanged = given._replace(views=(*v[:2], v[4], v[2], v[3]))
    torch.testing.assert_close(make(name, torch.float64).step(exchanged).loss, losses[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_too_few_views_are_refused_before_the_first_step(name: str) -> None:
    shape = (3, SIDE, SIDE)
    with pytest.raises(UserError, match=r"takes .*2 views of a sample, not 1 \(augment.views\)"):
        make(name).begin(Begin(N, steps=5, epochs=1, view_shapes=(shape,)))
    three = Begin(N, steps=5, epochs=1, view_shapes=(shape,) * 3)
    if name in SEVERAL:
        make(name).begin(three)
    else:
        with pytest.raises(UserError, match="takes 2 views of a sample, not 3"):
            make(name).begin(three)


# State and devices


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_is_the_straight_one_bit_by_bit(name: str) -> None:
    straight = make(name)
    optimizer = optimizer_of(straight)
    losses = [advance(straight, optimizer, batch(step)) for step in range(3)]
    saved = copy.deepcopy((straight.state_dict(), optimizer.state_dict()))
    losses += [advance(straight, optimizer, batch(step)) for step in range(3, 6)]

    torch.manual_seed(77)
    resumed: Method = instantiate(shrunk(name), encoder=Flat(), optimizer=straight.recipe)
    resumed.begin(Begin(global_batch_size=N, steps=50, epochs=2))
    resumed.train().load_state_dict(saved[0])
    optimizer = optimizer_of(resumed)
    optimizer.load_state_dict(saved[1])
    again = [advance(resumed, optimizer, batch(step)) for step in range(3, 6)]
    assert torch.stack(again).equal(torch.stack(losses[3:]))
    for key, value in straight.state_dict().items():
        assert resumed.state_dict()[key].equal(value), key


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_loss_and_keeps_projections_apart(name: str) -> None:
    model = make(name)
    optimizer, given = optimizer_of(model), batch(n=N)
    model.step(given)
    losses = [advance(model, optimizer, given).item() for _ in range(30)]
    if name not in ("dino", "ressl", "moco", "nnclr"):  # whose targets and candidates move
        assert losses[-1] < losses[0]
    z = next(iter(model.heads().values()))(model.encoder(given.views[0])).detach()
    assert F.normalize(z, dim=1).std(dim=0).mean() * z.shape[1] ** 0.5 > 0.3


def fit(name: str, views: int, small: int) -> dict[str, Any]:
    """Steps on this device's share of each batch, DDP's mean of gradients included."""
    model = make(name, torch.float64)
    if devices.world_size() > 1:
        global_batch_norm(model, torch.device("cpu"))
    optimizer, losses, gradients = optimizer_of(model), [], {}
    for step in range(5):
        whole = batch(step, torch.float64, views, N if step != 3 or name == "wmse" else N - 3, small)
        rows = slice(None)
        if devices.world_size() > 1:
            parts = torch.arange(len(whole.index)).tensor_split(devices.world_size())[devices.rank()]
            rows = slice(int(parts[0]), int(parts[-1]) + 1)
        own = Batch(tuple(view[rows] for view in whole.views), whole.index[rows], whole.label[rows])
        losses.append(advance(model, optimizer, own))
        if step == 0:
            gradients = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    return {"losses": torch.stack(losses), "gradients": gradients, "state": model.state_dict()}


def several_fits() -> list[tuple[str, int, int]]:
    local = [name for name in SEVERAL if name not in ("simsiam", "supcon", "wmse")]
    return [*((name, 2, 0) for name in NAMES), *((name, 4, 2) for name in local)]


def one_device(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save({case: fit(*case) for case in several_fits()}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one_in_losses_gradients_and_state(tmp_path: Path) -> None:
    """A plain all_reduce in a loss gives half of the gradient on two devices."""
    mp.spawn(one_device, args=(2, str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for case in several_fits():
        alone = fit(*case)
        assert alone["losses"].diff().abs().min() > 1e-9, case  # not a row of constants
        for result in found:
            torch.testing.assert_close(result[case]["losses"], alone["losses"], rtol=1e-8, atol=1e-9, msg=str(case))
        assert found[0][case]["gradients"].keys() == alone["gradients"].keys()
        for part in ("gradients", "state"):
            for key, value in alone[part].items():
                torch.testing.assert_close(
                    found[0][case][part][key].double(),
                    value.double(),
                    rtol=1e-7,
                    atol=1e-8,
                    msg=lambda m, where=(case, part, key): f"{where}: {m}",
                )


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one_is_refused_the_last_one_too(name: str) -> None:
    """Its loss would be 0, or not a number, with an accuracy of 100 %."""
    model = make(name)
    with pytest.raises(UserError, match="batch_size=1 is too small"):
        model.begin(Begin(global_batch_size=1, steps=50, epochs=2))
    with pytest.raises(
        UserError, match=r"drop_last=false leaves a last batch of 1, which is too small.*Set it to true"
    ):
        model.begin(Begin(global_batch_size=N, steps=50, epochs=2, last_batch=1))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_in_pieces_gives_the_weights_of_the_whole(name: str) -> None:
    """Twenty steps with an encoder without batch statistics, which are all that may differ: heads see the whole."""
    fits, passed = [], []
    for pieces in (1, 4):
        model = make(name, torch.float64)
        model.encoder.norm = nn.Identity()
        if model.teacher is not None:
            model.teacher.norm = nn.Identity()
        model.encoder.conv.register_forward_hook(lambda conv, x, y: passed.append(len(x[0])))
        model.begin(Begin(global_batch_size=N, steps=50, epochs=2, pieces=pieces))
        optimizer = optimizer_of(model)
        losses = [advance(model, optimizer, batch(step, torch.float64)) for step in range(20)]
        fits.append((torch.stack(losses), model.state_dict(), set(passed)))
        passed.clear()
    (whole, state, rows), (losses, found, fewer) = fits
    assert {n // 4 for n in rows} == fewer
    near = 1e-6 if name == "corinfomax" else 1e-9  # it inverts what it adds 1e-8 to
    torch.testing.assert_close(losses, whole, rtol=near, atol=near)
    for key, value in state.items():
        torch.testing.assert_close(found[key], value, rtol=near, atol=near, msg=lambda m, k=key: f"{k}: {m}")
