"""References to an object by any of its names lead to where the reference describes it.

A type in a signature is named after the file that defines it (``scorelab.processes.base.Process``); the reference lists it once,
under its public name. What other libraries define is shown without a link: their addresses are known to no build without a network.
"""

import re
import sys
from collections import defaultdict
from importlib import import_module

from docutils import nodes

# Code that names an object: with a capital, a dot or a call, so that `grid` and `reward` stay words.
NAMES = re.compile(r"(?:sl\.|scorelab\.)?((?:\w+\.)*(?:[A-Z]\w+|\w+(?=\()|(?<=\.)\w+))(?:\(.*\))?")


def resolve(name):
    """The object of a dotted name, or None."""
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:i]))
        except ImportError:
            continue
        for part in parts[i:]:
            found = getattr(found, part, None)
        return found
    return None


def identity(found):
    found = getattr(found, "fget", None) or found
    return getattr(found, "__module__", None), getattr(found, "__qualname__", None)


def public(domain):
    """The names under which the reference describes objects, by what the objects are called where they are defined."""
    names = {}
    for name, entry in domain.objects.items():
        # What an alias of a type stands for is another library's, and is not called by that name alone.
        if entry.objtype != "type":
            names.setdefault(identity(resolve(name)), name)
    return names


def missing_reference(app, env, node, contnode):
    if node.get("refdomain") != "py":
        return None
    domain, target, module = env.domains.python_domain, node["reftarget"], node.get("py:module")
    if not hasattr(app, "public_names"):
        app.public_names = public(domain)
    scopes = (f"{module}.", f"{module}.{node.get('py:class')}.", "scorelab.", "scorelab.arrays.", "")
    found = next((found for scope in scopes if (found := resolve(scope + target)) is not None), None)
    where, name = identity(found)
    listed = f"scorelab.arrays.{target}" if name is None else app.public_names.get((where, name))
    if listed in domain.objects:
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", listed, node, contnode)
    # A role in a docstring leads somewhere; the types of a signature, and what other libraries have, need not.
    theirs = not target.startswith("scorelab.") if found is None else name is None or not where.startswith("scorelab")
    return contnode if "refexplicit" not in node or ("." in target and theirs) else None


def link_code(app, doctree, docname):
    """Code such as ``DDIM(eta=1.0)`` or ``sl.sample`` is a link where it is the name of one object of the reference."""
    if not hasattr(app, "short_names"):
        app.short_names = defaultdict(set)
        for name, entry in app.env.domains.python_domain.objects.items():
            parts = name.split(".")
            for i in range(1, len(parts) if not entry.aliased else 0):
                app.short_names[".".join(parts[i:])].add((entry.docname, entry.node_id))
    for code in list(doctree.findall(nodes.literal)):
        named = NAMES.fullmatch(code.astext())
        found = app.short_names.get(named[1], ()) if named else ()
        if len(found) == 1 and not isinstance(code.parent, nodes.reference | nodes.title):
            ((page, anchor),) = found
            link = nodes.reference("", "", internal=True, refuri=f"{app.builder.get_relative_uri(docname, page)}#{anchor}")
            code.replace_self(link)
            link += code


def is_public(cls):
    """Whether the module right below ``scorelab``, or a package further down, has a class of another file or its own."""
    parts = cls.__module__.split(".")
    if parts[0] != "scorelab":
        return True
    modules = [sys.modules.get(".".join(parts[:i])) for i in range(2, len(parts) + 1)]
    homes = [module for i, module in enumerate(modules) if i == 0 or hasattr(module, "__path__")]
    return not cls.__name__.startswith("_") and any(getattr(home, cls.__name__, None) is cls for home in homes)


def public_bases(app, name, cls, options, bases):
    """In the place of a base that no package exports stand the bases of that base."""

    def of(bases):
        for base in bases:
            plain = getattr(base, "__origin__", base)
            if plain is not object and is_public(plain):
                yield base
            else:
                yield from of(plain.__bases__)

    bases[:] = list(dict.fromkeys(of(bases))) or [object]


def no_bases(app, domain, kind, content):
    """A class that is derived from nothing of interest does not say so."""
    for line in list(content.children):
        if line.astext() in ("Bases: object", "Bases: ABC"):
            content.remove(line)


def signatures(app, kind, name, found, options, signature, returns):
    """Aliases of types by name, shapes without the space before them; no default that is not Python; none for a protocol."""
    if getattr(found, "_is_protocol", False):
        return "", None

    def plain(text):
        names = text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)|<function (\w+)>", r"\1\2", text).replace("<factory>", "...")
        return names and re.sub(r"(\w, ') ", r"\1", names)

    return plain(signature), plain(returns)


def setup(app):
    app.connect("missing-reference", missing_reference)
    app.connect("doctree-resolved", link_code)
    app.connect("autodoc-process-bases", public_bases)
    app.connect("autodoc-process-signature", signatures)
    app.connect("object-description-transform", no_bases)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
