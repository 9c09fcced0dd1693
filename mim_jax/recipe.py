"""Recipe: a method as data. A base is `Config -> Recipe`, a paper `Recipe -> Recipe`; nothing runs here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from flax import linen as nn

from mim_jax.errors import Refused
from mim_jax.models.levels import Encoder, Levels

if TYPE_CHECKING:  # the forward pass reads recipes, not the other way round
    from mim_jax.forward import Forward

Terms = Mapping[str, Any]  # term name -> scalar; '' names an objective's only term
Weight = float | Callable[[Any], Any]  # constant, or optimizer step -> weight


@dataclass(frozen=True)
class View:
    """One look at each image.

    crop: the crop the loader must deliver (views naming the same crop share its pixels); photometric: (pixels
    f32[B,H,W,3] in [0,1], one key per image) -> pixels, run on the device; block: which run of V patches of the mask's
    order this view keeps (see tokens.plan_from_scores), None for a view that is never masked.
    """

    crop: str
    photometric: Callable | None = None
    block: int | None = 0


@dataclass(frozen=True)
class Masking:
    """scores: (forward, view) -> f[B,N], the `visible` lowest of each image stay visible (a static count)."""

    scores: Callable[[Forward, str], Any]
    visible: int


@dataclass(frozen=True)
class DecoderPart:
    """module: (Tokens, MaskPlan[, memory]) -> Levels with a prediction; memory: Levels -> tokens to cross-attend to.

    mask_tokens: whether mask tokens meet image tokens inside it.
    """

    module: nn.Module
    memory: Callable[[Levels], Any] | None = None
    mask_tokens: bool = True


@dataclass(frozen=True)
class Objective:
    """loss: forward -> {term: f32[]}; weight: one for all terms or {term: weight}; heads: modules it owns.

    kind: 'reconstruct', 'contrast' and 'classify' mark a base's own task, which a paper may re-weight; 'auxiliary' is
    everything else.
    """

    loss: Callable[[Forward], Terms]
    weight: Weight | Mapping[str, Weight] = 1.0
    heads: Mapping[str, nn.Module] = field(default_factory=dict)
    kind: Literal['reconstruct', 'contrast', 'classify', 'auxiliary'] = 'auxiliary'

    def weight_of(self, term: str, step: Any) -> Any:
        """The factor of one term at an optimizer step. Raises KeyError naming a term that has none."""
        weight = self.weight
        if isinstance(weight, Mapping):
            if term not in weight:
                raise KeyError(f'the loss has a term {term!r}, but weights only for {", ".join(weight)}')
            weight = weight[term]
        return weight(step) if callable(weight) else weight


@dataclass(frozen=True)
class EMA:
    """A momentum teacher: teacher <- teacher + rate (student - teacher) after every optimizer step.

    It holds exactly the parameters read through it. rate_at: step -> 1 - momentum, given so because 0.99999 has no exact
    neighbours in fp32 (see teachers.py for schedules). average_batch_stats: its BatchNorm uses the average of the student's
    running statistics (False: the statistics of its own batch). plan: (student forward, view) -> MaskPlan | None.
    """

    rate_at: Callable[[Any], Any]
    average_batch_stats: bool = True
    plan: Callable[[Forward, str], Any] | None = None


@dataclass(frozen=True)
class Frozen:
    """A fixed teacher: an argument of the step, never part of the state.

    load: () -> parameters of `encoder`; digest: () -> checksum of the file they come from, '' where there is none; summary:
    what it is, in a line to print before a run.
    """

    encoder: Encoder
    load: Callable[[], Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    digest: Callable[[], str] = str
    summary: str = ''


@dataclass(frozen=True)
class Picture:
    """How to draw a decoder's prediction as an image.

    norm_pix: the statistics that its targets were normalised with, and that the picture borrows from the true patches: 'none',
    'patch' (all P values jointly, unbiased), 'channel' (each channel of a patch alone, biased). target: forward ->
    f[B,H,W,3], the images whose patches are predicted, where they are not the input itself (PixMIM).
    """

    decoder: str
    norm_pix: Literal['none', 'patch', 'channel'] = 'none'
    target: Callable[[Forward], Any] | None = None


@dataclass(frozen=True)
class Chart:
    """Logged values to draw when a run ends: every key that begins with `prefix` and goes on with a layer's number.

    over 'steps': one line per layer against optimizer steps; 'layers': one line per moment of the run against layers.
    label: of the values' axis.
    """

    prefix: str
    label: str
    over: Literal['steps', 'layers'] = 'steps'


@dataclass(frozen=True)
class Recipe:
    """Everything the one train step needs to know about a method.

    config: the resolved configuration (`steps`, `steps_per_epoch`, `classes` filled in); neck: readers Levels -> Tokens that
    are summed, then the encoder's final norm; watches: forward -> scalar or {name: scalar}, logged without gradient; decay:
    {pattern over a parameter's whole path: whether weight decay acts}, which goes before optim.decay_exclude; reconstructs:
    whether the base predicts what masked patches show; labels: whether forward.labels is read; mean, std: input statistics;
    predict: forward -> {name: logits f[B,K]}, of which a test counts the right ones ('' names an only one); rate: (path,
    shape) -> what the learning rate of a parameter is multiplied by, a number or an array that broadcasts to it.
    """

    config: Any
    encoder: Encoder
    masking: Masking
    views: Mapping[str, View]
    neck: Mapping[str, nn.Module]
    decoders: Mapping[str, DecoderPart]
    objectives: Mapping[str, Objective]
    papers: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    teachers: Mapping[str, EMA | Frozen] = field(default_factory=dict)
    watches: Mapping[str, Callable[[Forward], Any]] = field(default_factory=dict)
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    charts: Mapping[str, Chart] = field(default_factory=dict)
    decay: Mapping[str, bool] = field(default_factory=dict)
    reconstructs: bool = True
    labels: bool = False
    predict: Callable[[Forward], Mapping[str, Any]] | None = None
    rate: Callable[[str, tuple[int, ...]], Any] | None = None

    @property
    def name(self) -> str:
        """'mae+mff+mto': the base and its papers, in the order they were applied."""
        return '+'.join(self.papers)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.config.image_size // self.encoder.patch_size
        return side, side

    @property
    def patches(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    @property
    def crops(self) -> tuple[str, ...]:
        """The crops a loader must deliver, each once."""
        return tuple(dict.fromkeys(view.crop for view in self.views.values()))

    @property
    def inputs(self) -> tuple[str, ...]:
        """What of a loader's batch the step takes: the crops, and 'label' where labels are read."""
        return (*self.crops, 'label') if self.labels else self.crops

    def extend(self, paper: str, **tables: Mapping[str, Any]) -> Recipe:
        """This recipe with `paper` applied and entries added to its tables. Refuses a paper twice, and any collision."""
        if paper in self.papers:
            raise Refused(f'{paper} is already part of {self.name}; name each paper once.')
        merged = {}
        for table, entries in tables.items():
            present = getattr(self, table)
            clash = sorted(present.keys() & entries.keys())
            if table == 'objectives' and 'total' in entries:
                raise Refused(f"{paper} names an objective 'total', which is the name of the sum; choose another.")
            if clash:
                raise Refused(f'{paper} would overwrite {", ".join(clash)} in the {table} of {self.name}.')
            merged[table] = {**present, **entries}
        return replace(self, papers=(*self.papers, paper), **merged)

    def swap(self, table: str, **entries: tuple[type, Any]) -> Recipe:
        """Replace entries: swap('neck', last=(Last, Fusion(...))). Refuses when the present one is not the expected kind."""
        present = dict(getattr(self, table))
        for key, (expected, new) in entries.items():
            found = type(present[key]).__name__ if key in present else 'nothing'
            if not isinstance(present.get(key), expected):
                raise Refused(
                    f'{type(new).__name__} takes the place of {expected.__name__} as {table}/{key}, '
                    f'but {self.name} has {found} there.'
                )
            present[key] = new
        return replace(self, **{table: present})

    def mixed_places(self) -> tuple[str, ...]:
        """Where mask tokens meet image tokens: 'encoder', or the names of decoders."""
        if self.encoder.mask_tokens:
            return ('encoder',)
        return tuple(name for name, part in self.decoders.items() if part.mask_tokens)

    def module(self, role: str) -> nn.Module:
        """The module that owns the parameters of a role: encoder, neck/<n>, decoder/<n>, objectives/<n>/<head>."""
        kind, _, name = role.partition('/')
        if kind == 'objectives':
            objective, _, head = name.partition('/')
            owned = self.objectives[objective].heads if objective in self.objectives else {}
            table, name = owned, head
        else:
            table = {
                'encoder': {'': self.encoder},
                'neck': self.neck,
                'decoder': {key: part.module for key, part in self.decoders.items()},
            }.get(kind, {})
        if name not in table:
            raise KeyError(f'{self.name} has no module {role!r}; there are: {", ".join(self.roles())}')
        return table[name]

    def roles(self) -> tuple[str, ...]:
        """Every role: encoder, neck/<n>, decoder/<n>, objectives/<n>/<head>."""
        heads = (f'objectives/{n}/{head}' for n, objective in self.objectives.items() for head in objective.heads)
        return ('encoder', *(f'neck/{n}' for n in self.neck), *(f'decoder/{n}' for n in self.decoders), *heads)


def scale_weight(weight: Weight | Mapping[str, Weight], factor: float) -> Weight | Mapping[str, Weight]:
    """`factor` times a weight of any form; what a paper uses to re-weight a base's own task."""
    if isinstance(weight, Mapping):
        return {term: scale_weight(one, factor) for term, one in weight.items()}
    return (lambda step: factor * weight(step)) if callable(weight) else factor * weight


if __name__ == '__main__':
    # The support matrix, run by name: its program stands above this floor, and imports this module once more, as itself.
    # What was just executed is a second copy of every class here, which no method has ever seen, so it does nothing else.
    import runpy

    runpy.run_module('mim_jax.matrix', run_name='__main__')
