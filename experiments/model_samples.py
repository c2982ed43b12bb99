r"""One row of samples of every model that the package carries, by the sampler of its config.

    python experiments/model_samples.py --out docs/images

Classes go from 0 to 9 where the model knows them; the others draw what they like. Nothing is chosen.
"""

from __future__ import annotations

from scorelab import pretrained, viz
from scorelab.run.script import parse, script


def main() -> None:
    arguments = parse(__doc__, columns=10, seed=0)
    rows = {}
    for name in pretrained.names():
        who = pretrained.load(name)
        rows[name] = (who.sample(arguments.columns, seed=arguments.seed).x, who.data().levels)
        print(name, flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    print("wrote", viz.save(viz.image_rows(rows), arguments.out / "pretrained.png"))


if __name__ == "__main__":
    script(main)
