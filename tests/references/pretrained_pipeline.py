"""Write ``pretrained_pipeline.npz``: whole pipelines of diffusers, as they lie in folders and what they make.

By ``python tests/references/pretrained_pipeline.py``.

The oracle is diffusers (Apache-2.0; made with 0.42.1, torch 2.14.0, transformers 5.24.0, CPU), in float64 but for its embedding of
time. Each pipeline is saved by it; the JSON and text files of the folder are stored as they are, and the weights are drawn by the
names in its files (``drawn.py``). Images are channels last.
"""

import json
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from drawn import digest, drawn
from safetensors.numpy import load_file, save_file

FILE = Path(__file__).resolve().parent / "pretrained_pipeline.npz"
PROMPTS = ["a cat", "Dog, dog!"]


def tokenizer(folder):
    """A tokenizer of bytes with four merges, with the layout of CLIP's."""
    known = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in known]
    letters = [*map(chr, known), *(chr(256 + i) for i in range(len(rest)))]
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    end = "<|endoftext|>"
    special = dict(bos_token="<|startoftext|>", eos_token=end, unk_token=end, pad_token=end)
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77, **special)


def autoencoder():
    return diffusers.AutoencoderKL(
        block_out_channels=[32, 32], down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        sample_size=16, norm_num_groups=8,
    )  # fmt: skip


def text_to_image(folder):
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=[32, 32], layers_per_block=1, sample_size=8, down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"], cross_attention_dim=32, attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip
    tokens = tokenizer(folder / "tokens")
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=48, num_attention_heads=4, num_hidden_layers=2, eos_token_id=2,
        projection_dim=32,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(), text_encoder=transformers.CLIPTextModel(config), tokenizer=tokens, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def pixels(scheduler, **config):
    unet = diffusers.UNet2DModel(sample_size=8, layers_per_block=1, block_out_channels=[32, 32], attention_head_dim=None, **config)
    return unet, scheduler


def ddpm(folder):
    blocks = dict(down_block_types=["DownBlock2D", "AttnDownBlock2D"], up_block_types=["AttnUpBlock2D", "UpBlock2D"])
    more = dict(downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6, norm_num_groups=8)
    return diffusers.DDPMPipeline(*pixels(diffusers.DDPMScheduler(), **blocks, **more))


def ncsnpp(folder):
    blocks = dict(
        down_block_types=["SkipDownBlock2D", "AttnSkipDownBlock2D"], up_block_types=["AttnSkipUpBlock2D", "SkipUpBlock2D"]
    )
    more = dict(time_embedding_type="fourier", mid_block_scale_factor=2**0.5, norm_num_groups=None, norm_eps=1e-6)
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=50.0)
    return Ve(*pixels(scheduler, **blocks, **more))


class Ve(diffusers.DiffusionPipeline):
    """A network and its scheduler, as pipelines of score_sde are saved."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)


def classes(folder):
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        num_embeds_ada_norm=5,
    )  # fmt: skip
    return diffusers.DiTPipeline(net, autoencoder(), diffusers.DDIMScheduler(clip_sample=False), id2label={"0": "tench"})


def saved(make, flat):
    """The pipeline with drawn weights, its files, and the names and shapes of its tensors by file."""
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        pipe, root = make(place), place / "saved"
        pipe.save_pretrained(root)
        shapes, found = {}, {}
        for file in sorted(root.rglob("*.safetensors")):
            shape = {name: list(value.shape) for name, value in load_file(file).items()}
            save_file(drawn(shape), file, metadata={"format": "pt"})
            shapes[str(file.relative_to(root))], found[str(file.relative_to(root))] = shape, digest(drawn(shape))
        pipe = type(pipe).from_pretrained(root, torch_dtype=torch.float64)
        texts = {
            str(file.relative_to(root)): file.read_text() for file in sorted(root.rglob("*")) if file.suffix in (".json", ".txt")
        }
    if flat:
        # As the first repositories: everything beside the index.
        short = lambda name: name.removeprefix("unet/").removeprefix("scheduler/")
        shapes, found, texts = ({short(name): value for name, value in each.items()} for each in (shapes, found, texts))
    return pipe, dict(files=texts, shapes=shapes, sha256=found)


def last(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def main():
    rng = np.random.default_rng(5)
    normal = lambda *shape: torch.tensor(rng.standard_normal(shape))
    out = dict(versions=np.array([torch.__version__, diffusers.__version__, transformers.__version__, np.__version__]))

    pipe, info = saved(text_to_image, False)
    pipe.set_progress_bar_config(disable=True)
    noise, images = normal(2, 4, 8, 8), torch.tensor(rng.integers(256, size=(2, 3, 16, 16))).double()
    with torch.no_grad():
        latents = pipe(PROMPTS, latents=noise, num_inference_steps=10, guidance_scale=7.5, output_type="latent").images
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
        mean = pipe.vae.encode(images / 127.5 - 1).latent_dist.mean * pipe.vae.config.scaling_factor
        ids = pipe.tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
        context = pipe.text_encoder(ids)[0]
    out |= {
        "sd/info": np.array(json.dumps(info)),
        "sd/prompts": np.array(PROMPTS),
        "sd/noise": last(noise),
        "sd/images": last(images),
    }
    out |= {"sd/latents": last(latents), "sd/decoded": last(decoded), "sd/mean": last(mean), "sd/context": context.numpy()}

    for name, make, flat in (("ddpm", ddpm, True), ("ncsnpp", ncsnpp, True), ("dit", classes, False)):
        pipe, info = saved(make, flat)
        net = pipe.transformer if name == "dit" else pipe.unet
        x = normal(2, net.config.in_channels, 8, 8)
        times = torch.tensor([700, 12]) if name != "ncsnpp" else torch.tensor([20.0, 0.3], dtype=torch.float64)
        labels = torch.tensor([1, 4])
        with torch.no_grad():
            found = net(x, times, class_labels=labels).sample[:, :4] if name == "dit" else net(x, times).sample
        out |= {f"{name}/info": np.array(json.dumps(info)), f"{name}/x": last(x), f"{name}/times": times.numpy()}
        out |= {f"{name}/output": last(found), f"{name}/labels": labels.numpy()}
    np.savez_compressed(FILE, **out)


if __name__ == "__main__":
    main()
