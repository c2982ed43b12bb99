"""The directive ``model-cards``: two tables of the models that the package carries, from their cards."""

from docutils import nodes
from docutils.parsers.rst import Directive

from scorelab.pretrained import card, names


def tables():
    """Head and rows of each table; the first cell of a row is the name."""
    cards = {name: card(name) for name in names()}
    measured, used = [], []
    for name, found in cards.items():
        fid = found.metrics[0]
        what = (name, found.what, f"{found.parameters:,}", str(found.calls))
        measured.append((*what, f"{fid.mean:.2f} ± {fid.deviation:.2f}", f"{fid.floor:.2f}", f"{found.n:,}, {len(found.seeds)}"))
        training = f"{found.config}, seed {found.seed}, {found.steps:,} steps; {found.trained}"
        used.append((name, training, found.good_for, found.not_for))
    yield ("model", "what it is", "parameters", "network calls", "FID", "its floor", "n, seeds"), measured
    yield ("model", "training", "good for", "not for"), used


def row(cells, head=False):
    found = nodes.row()
    for i, text in enumerate(cells):
        entry, paragraph = nodes.entry(), nodes.paragraph()
        paragraph += nodes.Text(text) if head or i else nodes.literal(text, text)
        entry += paragraph
        found += entry
    return found


class ModelCards(Directive):
    def run(self):
        found = []
        for head, rows in tables():
            group, top, body = nodes.tgroup(cols=len(head)), nodes.thead(), nodes.tbody()
            group += [nodes.colspec(colwidth=1) for _ in head]
            top += row(head, head=True)
            body += [row(cells) for cells in rows]
            group += [top, body]
            table = nodes.table(classes=["colwidths-auto"])
            table += group
            found.append(table)
        return found


def setup(app):
    app.add_directive("model-cards", ModelCards)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
