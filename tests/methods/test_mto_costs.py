"""What MTO keeps in memory, and that nothing breaks in bf16 where affinities are saturated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mto_ours import DECODER, TokensOnly
from tiny_runs import QUICK, STEPS, random_batch, random_state, start, tiny_config, tiny_mae

from mim_jax.methods import BASES
from mim_jax.methods.mto import mto
from mim_jax.objectives.heterogeneity import heterogeneity

# MAE's ViT-B/16 decoder at a batch of 256: nothing of it is computed.
IMAGES, PATCHES, VISIBLE, WIDTH = 256, 196, 49, 512
AFFINITIES = IMAGES * PATCHES * VISIBLE * 4  # bytes of one layer's, in fp32
TOKENS = jax.ShapeDtypeStruct((IMAGES, PATCHES, WIDTH), jnp.float32)


def total(layers, **options):
    """The sum of MTO's terms of these tokens."""
    return sum(mto(tiny_mae(), **options).objectives['mto'].loss(TokensOnly(layers, VISIBLE)).values())


def kept_shapes(function, *arguments):
    """Shapes of all that the backward pass is given: the leaves of the function that vjp returns."""
    backward = jax.eval_shape(lambda *a: jax.vjp(function, *a)[1], *arguments)
    return [leaf.shape for leaf in jax.tree.leaves(backward)]


@pytest.mark.parametrize(
    'options', [{}, {'spa_layers': 'all', 'exclude_self': True}, {'stop_visible': True}, {'affinity_scale': 'cosine'}]
)
def test_no_affinities_are_kept_for_the_backward_pass(options):
    """Only tokens, whose largest arrays they are."""
    kept = kept_shapes(lambda layers: total(layers, **options), [TOKENS] * 4)
    assert TOKENS.shape in kept
    assert not [shape for shape in kept if set(shape[-2:]) == {PATCHES, VISIBLE}]
    assert not [shape for shape in kept if np.prod(shape) > np.prod(TOKENS.shape)]


def test_affinities_would_be_kept_without_checkpoints():
    free = TokensOnly([jnp.zeros((2, PATCHES, 8))], VISIBLE)
    kept = kept_shapes(
        lambda x: heterogeneity(x, free.main.keep[:2], free.main.masked[:2]).sum(), jnp.zeros((2, PATCHES, 8))
    )
    assert (2, PATCHES, VISIBLE) in kept


def scratch(layers):
    """Bytes of temporaries of the compiled gradient, where the compiler orders for least memory, as on TPUs and GPUs.

    XLA:CPU orders for threads by default, and makes the affinities of all layers again at the same time.
    """
    options = QUICK | {'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED'}
    program = jax.jit(jax.grad(total)).lower([TOKENS] * (layers + 1)).compile(compiler_options=options)
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason='this XLA cannot be told to order for least memory')
def test_another_layer_needs_no_room_for_its_affinities():
    """Without checkpoints it is two arrays of them for every layer."""
    few, many = scratch(4), scratch(8)
    print(f'temporaries {few / 1e6:.0f} MB of 4 layers, {many / 1e6:.0f} MB of 8; affinities {AFFINITIES / 1e6:.1f} MB')
    assert many - few < AFFINITIES / 10


@pytest.mark.parametrize(
    ('base', 'scale', 'factor'),
    [('mae', 'none', 60.0), pytest.param('simmim', 'sqrt_dim', 30.0, marks=pytest.mark.slow)],
)
def test_training_in_bf16_at_saturated_affinities(base, scale, factor):
    """Tokens so long that most mask tokens see one visible token alone: L_e nears 1 / epsilon. All terms at weight 1."""
    config = tiny_config(base=base, dtype='bfloat16', optim={'clip_norm': 0.0})
    recipe = mto(BASES[base](config, **(DECODER if base == 'mae' else {})), mto_weight=1.0, affinity_scale=scale)
    state = random_state(recipe)
    role, embed = {'mae': ('decoder/pixels', 'embed'), 'simmim': ('encoder', 'patch_embed')}[base]
    held = state.params[role]
    long = {'mask_token': factor * held['mask_token'], embed: jax.tree.map(lambda a: factor * a, held[embed])}
    state = state.replace(params={**state.params, role: {**held, **long}})
    run = start(recipe, first=state)
    last, logs = run.train([random_batch(recipe, seed) for seed in range(STEPS)])
    place = recipe.mixed_places()[0]
    h = np.array([[log[f'watch/mto/{place}/heterogeneity_{layer:02d}'] for layer in range(3)] for log in logs])
    print(f'{base}: H of the first step {h[0]}, of the last {h[-1]}; L_e {logs[0]["loss/mto/distinctiveness"]:.3g}')
    assert h[0, 0] < 0.1
    assert max(log['loss/mto/distinctiveness'] for log in logs) > 1e5
    for log in logs:
        assert all(np.isfinite(value) for value in log.values()), {k: v for k, v in log.items() if not np.isfinite(v)}
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(last.params))
