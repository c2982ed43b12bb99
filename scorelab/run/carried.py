"""``scorelab pretrained``: the trained models that the package carries, and the card of one."""

from __future__ import annotations

import json

from scorelab import pretrained
from scorelab.errors import ConfigError
from scorelab.metrics.smallcnn import WEIGHTS
from scorelab.names import did_you_mean


def print_pretrained(name: str | None = None) -> None:
    """Print the models with one line each, or the card of one; ConfigError for an unknown name."""
    known = pretrained.names()
    if name is None:
        width = max(map(len, known))
        for each in known:
            card = pretrained.card(each)
            print(f"{each:<{width}}  {card.what} {card.metrics[0].name} {card.metrics[0]}")
        print("\nclassifiers, scorelab.metrics.small_cnn(NAME)")
        for each, record in sorted(json.loads((WEIGHTS / "index.json").read_text(encoding="utf-8")).items()):
            print(f"{each:<{width}}  {record['test_accuracy']:.1%} of {record['test_size']:,} test images; {record['note']}")
    elif name not in known:
        raise ConfigError(f"pretrained {name}: expected one of {', '.join(known)}. {did_you_mean(name, known)}".rstrip())
    else:
        print(f"{name}: {pretrained.card(name)}")
