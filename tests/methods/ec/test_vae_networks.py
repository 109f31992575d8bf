"""Networks of the energy-calibrated VAE: parameter counts, shapes, initial laws; weights from PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jebm.convert.arrays import from_flat, from_torch
from jebm.methods.ec.energy_networks import LAYERS_32, LAYERS_64, MSResNet, ResNet
from jebm.methods.ec.vae_networks import Decoder, Encoder
from jebm.methods.ec.vae_networks_256 import Encoder256, Generator256
from jebm.networks import spectral_norm
from jebm.networks.layers import average_pool, nearest_upsample
from jebm.networks.normalization import BatchNorm


def abstract(module, *shape):
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape))


def initial(module, key, *shape):
    return jax.jit(module.init)(key, jnp.zeros(shape))


def drawn(module, *shape):
    """Variables as of numpy's normal draws of standard deviation 0.1: no compilation."""
    generator = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(0.1 * generator.standard_normal(leaf.shape), leaf.dtype)  # noqa: E731
    return jax.tree.map(draw, abstract(module, *shape))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (Encoder(), (1, 32, 32, 3), 44_915_072),
        (Decoder(), (1, 128), 32_521_728),
        (MSResNet(), (1, 32, 32, 3), 23_815_169),
        (ResNet(LAYERS_32), (1, 32, 32, 3), 7_941_121),
        (ResNet(((256, 1), (256, 1), (512, 1), (512, 1))), (1, 32, 32, 3), 11_810_817),
        (ResNet(((128, 2), (128, 2), (256, 2), (256, 2))), (1, 32, 32, 3), 6_171_137),
        (ResNet(((64, 1), (64, 1), (128, 1), (128, 1))), (1, 32, 32, 3), 940_545),
        (ResNet(LAYERS_64), (1, 64, 64, 3), 6_251_521),
        (Generator256(), (1, 128), 24_933_344),  # without the 192 of the release's second head
        (Encoder256(), (1, 256, 256, 3), 9_134_064),
    ],
)
def test_parameter_counts_are_those_of_the_authors_networks(module, shape, expected):
    assert count(abstract(module, *shape)["params"]) == expected


def test_parameter_counts_by_part():
    assert 44_915_072 + 32_521_728 == 77_436_800
    generator = abstract(Generator256(), 1, 128)["params"]
    assert {name: count(generator[name]) for name in ("se_64", "se_128", "se_256")} == {
        "se_64": 2_113_536, "se_128": 528_384, "se_256": 132_096,
    }  # fmt: skip
    encoder = abstract(Encoder(), 1, 32, 32, 3)["params"]
    assert {name: count(encoder[name]) for name in encoder} == {
        "conv_1": 3_456, "bn_1": 256, "layer1": 590_848, "layer2": 2_099_712, "layer3": 8_393_728,
        "layer4": 33_564_672, "mu": 131_200, "logvar": 131_200,
    }  # fmt: skip
    decoder = abstract(Decoder(), 1, 128)["params"]
    assert {name: count(decoder[name]) for name in decoder} == {
        "init": 4_198_400, "feat_8": 14_159_872, "feat_16": 4_720_640, "feat_32": 9_441_280, "to_32": 1_536,
    }  # fmt: skip
    energy = abstract(MSResNet(), 1, 32, 32, 3)["params"]
    assert [count(energy[f"scale{i}"]) for i in (1, 2, 3)] == [3_584 + 7_409_152] * 3
    assert count(energy["head"]) == 1_576_961


@pytest.mark.parametrize("image_size", [8, 16, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_decoder_shapes(image_size, channels):
    module = Decoder(width=2, image_size=image_size, channels=channels, latent_size=5)
    variables = abstract(module, 3, 5)
    for batch in ((), (3,), (2, 3)):
        z = jax.ShapeDtypeStruct((*batch, 5), jnp.float32)
        image = jax.eval_shape(module.apply, variables, z)
        assert image.shape == (*batch, image_size, image_size, channels)
        assert image.dtype == jnp.float32


def test_decoder_for_64_pixels_has_the_narrow_last_block():
    params = abstract(Decoder(image_size=64), 1, 128)["params"]
    assert params["feat_64"]["conv_1"]["kernel"].shape == (3, 3, 512, 256)
    assert params["to_64"]["kernel"].shape == (1, 1, 128, 3)


@pytest.mark.parametrize(("size", "channels", "options"), [
    (32, 3, {}), (64, 3, {}), (16, 1, {"num_stages": 3}), (8, 1, {"num_stages": 3, "stem_stride": 1}),
])  # fmt: skip
def test_encoder_shapes(size, channels, options):
    module = Encoder(width=4, latent_size=6, **options)
    for batch in ((), (3,)):
        x = jax.ShapeDtypeStruct((*batch, size, size, channels), jnp.float32)
        variables = jax.eval_shape(module.init, jax.random.key(0), x)
        mu, logvar = jax.eval_shape(module.apply, variables, x)
        assert mu.shape == logvar.shape == (*batch, 6)
    stages = [name for name in variables["params"] if name.startswith("layer")]
    assert len(stages) == options.get("num_stages", 4)


def test_256_pixel_shapes():
    encoder, generator = Encoder256(width=4, latent_size=6), Generator256(width=2, latent_size=6)
    for batch, size in (((), 256), ((2,), 256), ((2,), 100)):
        x = jax.ShapeDtypeStruct((*batch, size, size, 3), jnp.float32)
        mu, logvar = jax.eval_shape(encoder.init_with_output, jax.random.key(0), x)[0]
        assert mu.shape == logvar.shape == (*batch, 6)
        variables = abstract(generator, *batch, 6)
        image = jax.eval_shape(generator.apply, variables, mu)
        assert image.shape == (*batch, 256, 256, 3)


SMALL = ((4, 1), (6, 2))


def test_energy_of_one_example_and_of_a_batch_agree(key):
    x = jax.random.uniform(key, (3, 16, 16, 3), minval=-1.0)
    module = MSResNet(SMALL, head_width=8)
    variables = drawn(module, 16, 16, 3)
    batched = jax.jit(module.apply)(variables, x)
    assert batched.shape == (3,)
    assert len(np.unique(batched)) == 3
    one = jax.jit(jax.vmap(lambda image: module.apply(variables, image)))(x)
    np.testing.assert_allclose(one, batched, rtol=1e-5)


def test_bfloat16_trunk_has_float32_parameters_and_head(key):
    x = jax.random.uniform(key, (2, 8, 8, 1), minval=-1.0)
    exact, rounded = ResNet(SMALL, 64), ResNet(SMALL, 64, dtype=jnp.bfloat16)
    variables = drawn(rounded, 8, 8, 1)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    a, b = jax.jit(exact.apply)(variables, x), jax.jit(rounded.apply)(variables, x)
    assert b.dtype == jnp.float32
    assert not np.array_equal(a, b)
    np.testing.assert_allclose(a, b, atol=0.05 * float(jnp.max(jnp.abs(a))))


def test_initial_laws(key):
    """Energy: N(0, 1/fan_in), head N(0, 0.01^2). Encoder: N(0, 0.02^2). Decoder: U(+-1/sqrt(fan_in))."""
    energy = initial(ResNet(((64, 1), (32, 1)), 512), key, 8, 8, 3)["params"]
    block = energy["stage0"]["block0"]
    np.testing.assert_allclose(block["conv_1"]["kernel"].std(), (9 * 64) ** -0.5, rtol=0.03)
    np.testing.assert_allclose(energy["stage1"]["block0"]["shortcut"]["kernel"].std(), 64**-0.5, rtol=0.1)
    np.testing.assert_allclose(energy["head"]["fc_1"]["kernel"].std(), 0.01, rtol=0.05)
    assert not np.any(block["conv_1"]["bias"])
    # a normal law, not a truncated one
    assert np.abs(block["conv_1"]["kernel"]).max() > 3 * (9 * 64) ** -0.5

    encoder = initial(Encoder(width=16, latent_size=64, num_stages=1), key, 8, 8, 3)["params"]
    np.testing.assert_allclose(encoder["layer1"]["block1"]["conv_1"]["kernel"].std(), 0.02, rtol=0.05)
    np.testing.assert_allclose(encoder["mu"]["kernel"].std(), 0.02, rtol=0.1)

    decoder = initial(Decoder(width=2, image_size=8, latent_size=16), key, 1, 16)["params"]
    for kernel, fan_in in (
        (decoder["feat_8"]["conv_1"]["kernel"], 9 * 32),
        (
            decoder["init"]["conv_1"]["kernel"],
            16 * 64,
        ),  # PyTorch counts the outputs of a transposed convolution
    ):
        bound = fan_in**-0.5
        assert 0.98 * bound < np.abs(kernel).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.05)


def test_batch_norm_uses_the_biased_variance_and_tracks_the_unbiased_one(key):
    x = np.asarray(jax.random.normal(key, (3, 2, 2, 5)), np.float64) * 3 + 1
    module = BatchNorm()
    params = {"scale": jnp.arange(1.0, 6.0), "bias": jnp.arange(5.0)}
    stats = {"mean": jnp.full(5, 0.5), "var": jnp.full(5, 2.0)}
    variables = {"params": params, "batch_stats": stats}
    y, updated = module.apply(variables, jnp.asarray(x, jnp.float32), train=True, mutable=["batch_stats"])
    flat = x.reshape(12, 5)
    normalized = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(y.reshape(12, 5), normalized * np.arange(1, 6) + np.arange(5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.45 + 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 1.8 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)

    y = module.apply(variables, jnp.asarray(x, jnp.float32), train=False)
    expected = (flat - 0.5) / np.sqrt(2 + 1e-5) * np.arange(1, 6) + np.arange(5)
    np.testing.assert_allclose(y.reshape(12, 5), expected, rtol=1e-5, atol=1e-5)
    fresh = module.init(key, jnp.ones((1, 5)) * 7, train=True)["batch_stats"]
    np.testing.assert_array_equal(fresh["mean"], 0.0)
    np.testing.assert_array_equal(fresh["var"], 1.0)


def test_pooling_and_upsampling():
    x = jnp.arange(30.0).reshape(5, 3, 2)
    np.testing.assert_array_equal(average_pool(x), x[:4, :2].reshape(2, 2, 2, 2).mean((1, 2))[:, None])
    up = nearest_upsample(x)
    assert up.shape == (10, 6, 2)
    np.testing.assert_array_equal(up, np.repeat(np.repeat(x, 2, 0), 2, 1))


def test_errors_say_what_is_allowed():
    with pytest.raises(ValueError, match=r"image_size must be one of \[8, 16, 32, 64\], got 24"):
        abstract(Decoder(image_size=24), 1, 128)
    with pytest.raises(ValueError, match=r"latents must be \[..., 128\]"):
        abstract(Decoder(), 1, 64)
    with pytest.raises(ValueError, match="a map of 1x1 cannot be halved"):
        abstract(MSResNet(), 8, 8, 1)
    one = jnp.ones((1, 2))
    variables = BatchNorm().init(jax.random.key(0), one, train=True)
    with pytest.raises(ValueError, match="at least 2 values per channel"):
        BatchNorm().apply(variables, one, train=True, mutable=["batch_stats"])


def test_flat_names_and_all_that_does_not_fit_is_named():
    template = {"params": {"a": {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32)}},
                "batch_stats": {"b": {"mean": jax.ShapeDtypeStruct((4,), jnp.float32)}}}  # fmt: skip
    kernel, mean = np.arange(6.0).reshape(2, 3), np.arange(4.0)
    loaded = from_flat({"a/kernel": kernel, "b/mean": mean}, template)
    np.testing.assert_array_equal(loaded["params"]["a"]["kernel"], kernel)
    np.testing.assert_array_equal(loaded["batch_stats"]["b"]["mean"], mean)
    assert loaded["params"]["a"]["kernel"].dtype == jnp.float32
    expected = r"missing b/mean; not in the network c/bias; a/kernel has shape \(3, 2\), the network needs \(2, 3\)"
    with pytest.raises(ValueError, match=expected):
        from_flat({"a/kernel": kernel.T, "c/bias": mean}, template)


def test_pytorch_layouts(key):
    """A decoder's weights sent to PyTorch's layouts and back, the singular vectors with them."""
    module = Decoder(width=1, image_size=8, latent_size=3)
    variables = dict(drawn(module, 1, 3))
    spectral = spectral_norm.init(key, variables["params"])
    template = jax.eval_shape(lambda: variables | {"spectral": spectral})
    names = {
        "init/conv_1": "init.0", "init/bn_1": "init.1", "feat_8/conv_1": "feat.1", "feat_8/bn_1": "feat.3",
        "feat_8/conv_2": "feat.5", "feat_8/bn_2": "feat.6", "to_8": "out",
    }  # fmt: skip
    state_dict = {}
    for path, name in names.items():
        layer, stats, vectors = variables["params"], variables["batch_stats"], spectral
        for part in path.split("/"):
            layer, stats, vectors = layer[part], stats.get(part, {}), vectors.get(part, {})
        if "kernel" in layer:
            rows = layer["kernel"].shape[:3]
            state_dict |= {
                f"{name}.weight_orig": np.einsum("hwio->iohw" if "init" in path else "hwio->oihw", layer["kernel"]),
                f"{name}.weight_u": np.asarray(vectors["u"]),
                f"{name}.weight_v": np.einsum("hwi->ihw", vectors["v"].reshape(rows)).ravel(),
            }
        else:
            state_dict |= {
                f"{name}.weight": layer["scale"],
                f"{name}.bias": layer["bias"],
                f"{name}.running_mean": stats["mean"],
                f"{name}.running_var": stats["var"],
                f"{name}.num_batches_tracked": np.int64(7),
            }
    # the σ of PyTorch: out x rest, with (in, h, w) rows
    weight, u, v = (state_dict[f"feat.1.weight_{part}"] for part in ("orig", "u", "v"))
    sigma = u @ (weight.reshape(len(u), -1) @ v)
    np.testing.assert_allclose(
        spectral_norm.sigmas(variables["params"], spectral)["feat_8"]["conv_1"], sigma, rtol=1e-4, atol=1e-6
    )
    modules = {name: path for path, name in names.items()}
    loaded = from_torch(state_dict, template, modules, transposed={"init/conv_1"})
    jax.tree.map(np.testing.assert_array_equal, loaded, variables | {"spectral": spectral})
    without = from_torch(state_dict, variables, modules, transposed={"init/conv_1"})
    assert set(without) == {"params", "batch_stats"}

    with pytest.raises(ValueError, match="no entry for 'extra'"):
        from_torch({"extra.bias": np.ones(2)}, template, modules)
    with pytest.raises(ValueError, match="'init.0.weight_v' has 48 entries.*transposed"):
        from_torch(state_dict, template, modules)
    del state_dict["out.weight_u"], state_dict["init.0.weight_orig"]
    with pytest.raises(ValueError, match="missing init/conv_1/kernel, to_8/u"):
        from_torch(state_dict, template, modules, transposed={"init/conv_1"})


def test_pytorch_linear_layers_after_a_flattened_map():
    features = np.arange(12.0).reshape(2, 3, 2)  # (C, H, W)
    weight = np.arange(36.0).reshape(3, 12) ** 2
    template = {"params": {"mu": {"kernel": jax.ShapeDtypeStruct((12, 3), jnp.float32)}}}
    kernel = from_torch({"mu.weight": weight}, template, flattened={"mu": (2, 3, 2)})["params"]["mu"]["kernel"]
    ours = features.transpose(1, 2, 0).ravel() @ np.asarray(kernel)
    np.testing.assert_array_equal(ours, weight @ features.ravel())
    with pytest.raises(ValueError, match=r"'mu.weight' reads 12 inputs, flattened says \(2, 3, 3\)"):
        from_torch({"mu.weight": weight}, template, flattened={"mu": (2, 3, 3)})
    plain = from_torch({"mu.weight": weight}, template)["params"]["mu"]["kernel"]
    np.testing.assert_array_equal(plain, weight.T)
