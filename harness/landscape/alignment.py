"""Permutation alignment: reorders a net's hidden units to match another net's, without changing its function.

A net computes the same function for every order of its units, so two nets may be far apart in parameter space and yet
nearly equal. A barrier between two independently trained nets says little until their orders are matched (Entezari et
al. 2022). The model declares its units; each lists all slices that write, normalise or read it, so residual streams,
flattened maps and CReLU need no special cases. Within one run nothing needs matching.

Only permutations: rescaled ReLU units, and units with flipped signs (tanh, CReLU), are not matched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from harness import rng, tree
from harness.types import Net, Params, Slice, Unit

Orders = dict[str, Tensor]  # act -> [S, size]: order[s, j] is the unit that moves to place j
SWEEPS = 100  # upper limit; matching two trained nets takes about ten
ROUNDING = 1e-10  # relative; smaller gains are ignored, or two equal orders could alternate forever


def align(a: Net, b: Net, units: Sequence[Unit], x: Tensor, t: Tensor, *, by: str = "weights") -> tuple[Net, Orders]:
    """`b` with its units in the order of `a`'s, and that order; row s of `b` is matched to row s of `a`.

    by="weights": `match_weights`; by="activations": `match_activations` on the rows x [S, B, ...], t [S, B]. The same
    rows are used to verify the result. Cost: two forward passes (four by activations) and the matching. A row that is
    not finite in either net keeps its order.
    Raises ValueError for a model without units, or if their order changes the function.
    """
    if by == "weights":
        orders = match_weights(a.params, b.params, units)
    elif by == "activations":
        with torch.no_grad():
            orders = match_activations(a(x, t).acts, b(x, t).acts, units)
    else:
        raise ValueError(f"by={by}: choose from weights, activations")
    moved = reorder(b, units, orders)
    prove(b, moved, x, t)
    return moved, orders


def reorder(net: Net, units: Sequence[Unit], orders: Orders) -> Net:
    """The net with its units reordered: the same function, up to rounding errors of sums."""
    return Net(permute(net.params, units, orders), permute(net.buffers, units, orders), net.apply)


@torch.no_grad()
def prove(net: Net, moved: Net, x: Tensor, t: Tensor) -> None:
    """ValueError unless both nets give the same outputs on the rows."""
    before, after = net(x, t).logits, moved(x, t).logits
    far = (after - before).abs().amax((1, 2)) > 1e-3 * before.abs().amax((1, 2))  # rounding is below 1e-5
    if far.any():
        raise ValueError(
            "alignment: reordering the units changes the net's function: group norm ties units to their groups"
            " (norm=batch does not), a method gates units by position, or the model's `units` miss a slice"
        )


def permute(tensors: Params, units: Sequence[Unit], orders: Orders) -> Params:
    """Parameters or buffers with every slice of every unit reordered; the rest is unchanged.

    >>> unit = Unit("h", 3, (Slice("w", 1),), (Slice("v", 2),))
    >>> p = {"w": torch.tensor([[[1.0], [2.0], [3.0]]]), "v": torch.tensor([[[7.0, 8.0, 9.0]]])}
    >>> permute(p, [unit], {"h": torch.tensor([[2, 0, 1]])})
    {'w': tensor([[[3.],
             [1.],
             [2.]]]), 'v': tensor([[[9., 7., 8.]]])}
    """
    moved = dict(tensors)
    for unit in units:
        for s in (*unit.producers, *unit.norm, *unit.consumers):
            if s.name in moved:
                moved[s.name] = _reorder(moved[s.name], s, orders[unit.act])
    return moved


def _reorder(value: Tensor, s: Slice, order: Tensor) -> Tensor:
    """`value` [S, ...] with the units of the slice in `order` [S, size]."""
    size, n = order.shape[1] * s.repeat, value.shape[s.axis]
    index = torch.arange(n, device=value.device).repeat(len(value), 1)
    own = order[..., None] * s.repeat + torch.arange(s.repeat, device=value.device)
    index[:, s.offset : s.offset + size] = s.offset + own.flatten(1)
    shape = [len(value), *[n if i == s.axis else 1 for i in range(1, value.dim())]]
    return value.gather(s.axis, index.view(shape).expand_as(value))


def identity_orders(units: Sequence[Unit], like: Params) -> Orders:
    """The order that moves no unit."""
    some = next(iter(like.values()))
    return {u.act: torch.arange(u.size, device=some.device).repeat(len(some), 1) for u in units}


def moved_share(orders: Orders) -> Tensor:
    """Share of all units that an alignment moved: [S], from 0 (the identity) to 1.

    >>> moved_share({"h": torch.tensor([[0, 1], [1, 0]]), "g": torch.tensor([[0, 1], [0, 1]])})
    tensor([0.0000, 0.5000])
    """
    each = [(o != torch.arange(o.shape[1], device=o.device)).float() for o in orders.values()]
    return torch.cat(each, 1).mean(1)


@torch.no_grad()
def match_weights(a: Params, b: Params, units: Sequence[Unit]) -> Orders:
    """Weight matching of Ainsworth, Hayase & Srinivasa (2023): orders P that make P(b) nearest to `a`.

        maximise <a, P(b)> = sum over all parameters,  by coordinate ascent: with the other layers' orders fixed the
        sum is linear in a layer's own, a linear assignment (scipy), solved exactly; sweeps until none gains.

    A local maximum; the global one for a single hidden layer. Layers are visited in the declared order first, then in
    random orders, the same for all rows. Two things are reordered but not part of the sum: running statistics, and a
    weight that a unit both writes and reads (a recurrent one), in which the sum is quadratic in its order. Cost of a
    sweep: one product [size, size] and one assignment per row and layer. Raises ValueError for a model without units.
    """
    _check(units)
    orders, moved = identity_orders(units, a), b
    finite = tree.finite(a) & tree.finite(b)
    for sweep in range(SWEEPS):
        gained = False
        for unit in [units[i] for i in _visits(len(units), sweep)]:
            order, gain = _assign(_overlap(a, moved, unit), finite)
            if gain:
                gained = True
                orders[unit.act] = orders[unit.act].gather(1, order)
                moved = permute(moved, [unit], {unit.act: order})
        if not gained:
            break
    return orders


def _check(units: Sequence[Unit]) -> None:
    if not units:
        raise ValueError("alignment: the model declares no units to match; see types.Unit")


def _visits(count: int, sweep: int) -> list[int]:
    """Order of the layers in a sweep; the first sweep goes forward, because the inputs' order is known."""
    if sweep == 0:
        return list(range(count))
    found: list[int] = rng.permutation(rng.fold(rng.keys([0], "alignment"), sweep), count)[0].tolist()
    return found


def _overlap(a: Params, b: Params, unit: Unit) -> Tensor:
    """<weights of unit i of a, weights of unit j of b>, without recurrent ones: [S, size, size] float64."""
    some = next(iter(a.values()))
    total = some.new_zeros(len(some), unit.size, unit.size, dtype=torch.float64)
    recurrent = {s.name for s in unit.producers} & {s.name for s in unit.consumers}
    for s in (*unit.producers, *unit.norm, *unit.consumers):
        if s.name in a and s.name not in recurrent:  # a norm's statistics are buffers
            total.baddbmm_(_own(a[s.name], s, unit.size), _own(b[s.name], s, unit.size).mT)
    return total


def _own(value: Tensor, s: Slice, size: int) -> Tensor:
    """The entries of the slice by unit: [S, size, numbers] float64."""
    return value.narrow(s.axis, s.offset, size * s.repeat).movedim(s.axis, 1).reshape(len(value), size, -1).double()


def _assign(overlap: Tensor, finite: Tensor) -> tuple[Tensor, bool]:
    """For each row the order with the largest sum of overlap[i, order[i]]: [S, size], and whether any row gained.

    A row without gain, or that is not finite [S], gets the identity.
    """
    from scipy.optimize import linear_sum_assignment

    size = overlap.shape[1]
    orders = torch.arange(size).repeat(len(overlap), 1)
    gained = False
    for s, table in enumerate(overlap.cpu()):
        if not finite[s]:
            continue
        order = torch.from_numpy(linear_sum_assignment(table.numpy(), maximize=True)[1])
        chosen = table[torch.arange(size), order]
        if float((chosen - table.diagonal()).sum()) > ROUNDING * float(chosen.abs().sum()):
            orders[s], gained = order, True
    return orders.to(overlap.device), gained


@torch.no_grad()
def match_activations(a: Mapping[str, Tensor], b: Mapping[str, Tensor], units: Sequence[Unit]) -> Orders:
    """Orders that maximise the summed correlation of each unit of `a` with its partner of `b` (Li et al. 2016).

        corr_ij = Pearson correlation over rows (and positions of a map) of unit i of a and unit j of b,
        copies of a unit (CReLU) added; a constant unit correlates with none

    `a`, `b`: `Out.acts` of the same rows. Layers are independent: one assignment each, no sweeps. A residual stream is
    matched by the act that represents it. ValueError for a model without units.
    """
    _check(units)
    orders: Orders = {}
    for u in units:
        za, zb = (_standardised(acts[u.act], u.size) for acts in (a, b))  # [S, copies, size, samples]
        overlap = (za @ zb.mT).sum(1)
        orders[u.act] = _assign(overlap, overlap.isfinite().all(2).all(1))[0]
    return orders


def _standardised(act: Tensor, size: int) -> Tensor:
    """Acts [S, B, copies size, ...] -> [S, copies, size, samples], each unit with mean 0 and norm 1, or 0."""
    z = act.double().transpose(1, 2).flatten(2)
    z = z.view(len(z), -1, size, z.shape[2])
    z = z - z.mean(3, keepdim=True)
    length = z.norm(dim=3, keepdim=True)
    largest = act.double().abs().flatten(1).amax(1).view(-1, 1, 1, 1)
    varies = length > 1e-10 * largest * math.sqrt(z.shape[3])  # the rest of a constant is rounding error
    return torch.where(varies | length.isnan(), z / length, 0)
