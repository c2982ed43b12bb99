"""Published checkpoints: where each comes from, what it is, and its licence. None is downloaded from here, and none is carried."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Published:
    """A checkpoint as it was published.

    Attributes:
        name: ours, that of the file without its ending.
        url: of the file.
        what: it is, in one sentence.
        licence: of the weights, as SPDX has it.
        licence_url: its text.
        parameters: their number; None where nobody has counted them in the file.
        sha256: of the file; None where nobody has recorded it yet.
    """

    name: str
    url: str
    what: str
    licence: str
    licence_url: str
    parameters: int | None = None
    sha256: str | None = None

    @property
    def file(self) -> str:
        """The name of the file."""
        return self.url.rpartition("/")[2]

    def __str__(self) -> str:
        count = f"{self.parameters:,} parameters" if self.parameters else "parameters not counted yet"
        lines = {
            "network": f"{self.what}, {count}",
            "file": f"{self.url}, sha256 {self.sha256 or 'not recorded yet'}",
            "licence": f"{self.licence}, {self.licence_url}",
            "convert": f"scorelab pretrained convert {self.file}",
        }
        return "\n".join(f"  {name:<8}  {text}" for name, text in lines.items())


_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
_BY_NC_SA = ("CC-BY-NC-SA-4.0", "https://creativecommons.org/licenses/by-nc-sa/4.0/")
_APACHE = ("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")
_MIT = ("MIT", "https://opensource.org/license/mit")
_ROWS = (
    ("edm-cifar10-32x32-uncond-vp", "CIFAR-10, DDPM++", 55_733_891, _BY_NC_SA),
    ("edm-cifar10-32x32-cond-vp", "CIFAR-10 with classes, DDPM++", 55_735_299, _BY_NC_SA),
    ("edm-cifar10-32x32-uncond-ve", "CIFAR-10, NCSN++", 56_397_827, _BY_NC_SA),
    ("edm-cifar10-32x32-cond-ve", "CIFAR-10 with classes, NCSN++", None, _BY_NC_SA),
    ("edm-ffhq-64x64-uncond-vp", "FFHQ at 64, DDPM++", 61_805_571, _BY_NC_SA),
    ("edm-ffhq-64x64-uncond-ve", "FFHQ at 64, NCSN++", 62_761_091, _BY_NC_SA),
    ("edm-afhqv2-64x64-uncond-vp", "AFHQv2 at 64, DDPM++", 61_805_571, _BY_NC_SA),
    ("edm-afhqv2-64x64-uncond-ve", "AFHQv2 at 64, NCSN++", 62_761_091, _BY_NC_SA),
    ("edm-imagenet-64x64-cond-adm", "ImageNet at 64 with classes, ADM", 295_899_267, _BY_NC_SA),
    ("baseline/baseline-cifar10-32x32-uncond-vp", "CIFAR-10, DDPM++ as in score_sde", None, _APACHE),
    ("baseline/baseline-cifar10-32x32-uncond-ve", "CIFAR-10, NCSN++ as in score_sde", None, _APACHE),
    ("baseline/baseline-imagenet-64x64-cond-adm", "ImageNet at 64 with classes, ADM as in guided-diffusion", None, _MIT),
)
# By name. That of the licence of the EDM files is in their repository; baselines keep that of their originals.
PUBLISHED = {
    path.rpartition("/")[2]: Published(
        name=path.rpartition("/")[2],
        url=f"{_EDM}{path}.pkl",
        what=what,
        parameters=count,
        licence=licence[0],
        licence_url=licence[1],
    )
    for path, what, count, licence in _ROWS
}
