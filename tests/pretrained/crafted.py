"""Files of torch written byte by byte, good ones and bad ones, without torch."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np

FILES = Path(__file__).resolve().parent.parent / "references" / "torch_files"
# What the crafted files are read with: enough for any good one of them.
STEPS = 20_000
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def op(code, *parts):
    return code.encode("latin1") + b"".join(parts)


def text(value):
    raw = value.encode()
    return op("X", struct.pack("<I", len(raw)), raw)


def number(value):
    return (
        op("J", struct.pack("<i", value))
        if -(2**31) <= value < 2**31
        else op("\x8a", b"\x09", value.to_bytes(9, "little", signed=True))
    )


def named(module, name):
    return op("c", f"{module}\n{name}\n".encode())


def tupled(*items):
    return op("(", *items, b"t")


def call(function, *items):
    return function + tupled(*items) + b"R"


def blob(content):
    return op("B", struct.pack("<I", len(content)), content)


def dictionary(**items):
    return b"}" + op("(", *(text(name) + value for name, value in items.items()), b"u")


def program(body, protocol=2):
    return bytes([0x80, protocol]) + body + b"."


ORDERED = call(named("collections", "OrderedDict"))


def storage(kind="FloatStorage", key="0", numel=4, more=b""):
    return tupled(text("storage"), named("torch", kind), text(key), text("cpu"), number(numel), more) + b"Q"


def tensor(size=(4,), stride=(1,), offset=0, of=None, hooks=ORDERED):
    of = storage() if of is None else of
    parts = of, number(offset), tupled(*map(number, size)), tupled(*map(number, stride)), b"\x89", hooks
    return call(named("torch._utils", "_rebuild_tensor_v2"), *parts)


def archive(content, records=None, root="archive", byteorder=b"little", more=(), **how):
    """An archive as ``torch.save`` writes it, around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **how) as file:
        file.writestr(f"{root}/data.pkl", content)
        for key, data in ({"0": bytes(16)} if records is None else records).items():
            file.writestr(f"{root}/data/{key}", data)
        file.writestr(f"{root}/byteorder", byteorder)
        for name, data in more:
            file.writestr(name, data)
    return buffer.getvalue()


def stream(content, data=((4, bytes(16)),), keys=("0",), system=None, tail=b"", magic=MAGIC):
    """The older stream of ``torch.save`` around a pickle."""
    system = dict(protocol_version=1001, little_endian=True, type_sizes={}) if system is None else system
    head = b"".join(pickle.dumps(value, protocol=2) for value in (magic, PROTOCOL, system))
    body = b"".join(struct.pack("<q", numel) + raw for numel, raw in data)
    return head + content + pickle.dumps(list(keys), protocol=2) + body + tail


def nested(content=None, **how):
    """A storage inside of a pickle of modules."""
    inner = stream(program(storage(more=b"N") if content is None else content), **how)
    return call(named("torch.storage", "_load_from_bytes"), blob(inner))


def persistent(protocol=4, **meta):
    """An object of ``torch_utils.persistence``."""
    usual = dict(type=text("class"), version=number(6), module_src=text("1 / 0"), class_name=text("SongUNet"), state=dictionary())
    return call(named("torch_utils.persistence", "_reconstruct_persistent_obj"), dictionary(**(usual | meta)))


def module(value):
    """A pickle of modules with one parameter, whose tensor is ``value``."""
    state = dictionary(_parameters=dictionary(weight=value), _buffers=dictionary(), _modules=dictionary())
    return program(dictionary(ema=persistent(state=state)), 4)


def state_dict(*values):
    return program(dictionary(**{f"w{i}": value for i, value in enumerate(values)}))


def laughs(wrap, depth=60):
    """Each level holds the level below twice, by reference."""
    body = wrap(b"N", b"N") + op("q", b"\x00")
    for _ in range(depth):
        body = wrap(body, b"h\x00") + op("q", b"\x00")
    return body


def overlapping():
    """An archive whose directory names one header twice."""
    raw = bytearray(archive(state_dict(tensor()), {"0": bytes(16), "1": bytes(16)}))
    at = [i for i in range(len(raw)) if raw[i : i + 4] == b"PK\1\2"]
    # The offset of the header of the second storage, set to that of the first.
    raw[at[2] + 42 : at[2] + 46] = raw[at[1] + 42 : at[1] + 46]
    return bytes(raw)


def malicious(canary):
    """Name, file and part of the reason: whatever runs something makes the file ``canary``."""
    command = text(f"touch {canary}")
    system = call(named("os", "system"), command)
    python = text(f"open({str(canary)!r}, 'w')")
    ok = tensor()
    rebuild = named("torch._utils", "_rebuild_tensor_v2")
    stack = lambda module, name: text(module) + text(name) + b"\x93"
    yield "os.system in an archive", archive(state_dict(system)), "opcode GLOBAL at byte 11: it asks for os.system"
    yield "os.system in a stream", stream(state_dict(system), data=(), keys=()), "os.system"
    yield "os.system in a pickle of modules", program(dictionary(ema=system), 4), "os.system"
    yield "os.system by a stack global", program(call(stack("os", "system"), command), 4), "opcode STACK_GLOBAL at byte"
    yield "posix.system", archive(program(call(named("posix", "system"), command))), "posix.system"
    yield "protocol 0", archive(b"cos\nsystem\n(S'touch'\ntR."), "expected PROTO first"
    yield "eval", archive(program(call(named("builtins", "eval"), python))), "builtins.eval"
    yield "exec", program(call(named("builtins", "exec"), python), 4), "builtins.exec"
    yield "import", archive(program(call(named("builtins", "__import__"), text("os")))), "builtins.__import__"
    yield "getattr", archive(program(call(named("builtins", "getattr"), ORDERED, text("clear")))), "builtins.getattr"
    yield "a dotted name", program(stack("collections", "OrderedDict.__init__.__globals__"), 4), "OrderedDict.__init__"
    yield "numpy.load", program(call(named("numpy", "load"), text("x")), 4), "numpy.load"
    yield "torch.jit", program(call(named("torch.jit", "load"), text("x")), 4), "torch.jit.load"
    yield "functools.partial", program(call(named("functools", "partial"), named("os", "system")), 4), "functools.partial"
    yield "copyreg", program(call(named("copyreg", "_reconstructor"), named("builtins", "object")), 4), "copyreg._reconstructor"
    yield "EXT1", archive(program(b"\x82\x01")), "opcode EXT1 at byte 2: not allowed"
    yield "EXT4", archive(program(b"\x84\x01\x00\x00\x00")), "opcode EXT4"
    yield "INST", archive(program(op("(", command, b"ios\nsystem\n"))), "opcode INST"
    yield "OBJ", archive(program(op("(", named("collections", "OrderedDict"), b"o"))), "opcode OBJ"
    yield "NEWOBJ_EX", program(named("collections", "OrderedDict") + b")}\x92", 4), "opcode NEWOBJ_EX"
    yield "NEWOBJ of a function", archive(program(rebuild + b")\x81")), "expected a container of its table"
    yield "an unknown opcode", archive(program(b"\xff")), "opcode 0xff"
    yield "an out-of-band buffer", program(b"\x97", 5), "opcode NEXT_BUFFER"
    yield (
        "BUILD on an ordered dict",
        archive(program(ORDERED + dictionary(__class__=b"N") + b"b")),
        "attributes of a collections.OrderedDict",
    )
    yield (
        "BUILD with slots",
        archive(program(ORDERED + tupled(b"N", dictionary(clear=b"N")) + b"b")),
        "attributes of a collections.OrderedDict",
    )
    yield "BUILD on a dict", archive(program(b"}" + dictionary(a=b"N") + b"b")), "opcode BUILD"
    yield "BUILD on a function", archive(program(rebuild + dictionary(__call__=b"N") + b"b")), "opcode BUILD"
    yield (
        "BUILD twice",
        module(named("torch.nn.modules.container", "Sequential") + b")\x81" + 2 * (dictionary() + b"b")),
        "and once",
    )
    yield "a call of a storage type", archive(program(call(named("torch", "FloatStorage"), number(1)))), "expected a function"
    yield "a call of a result", archive(program(call(ok, number(1)))), "expected a function"
    yield "a call without a tuple", archive(program(named("collections", "OrderedDict") + b"]R")), "and a tuple"
    yield "OrderedDict of a list", archive(program(call(named("collections", "OrderedDict"), b"]"))), "1 arguments: expected 0"
    yield "a tensor of text", archive(program(call(rebuild, *(text("x"),) * 6))), "expected a storage"
    yield "a tensor of too few", archive(program(call(rebuild, storage()))), "1 arguments: expected 6 to 7"
    yield (
        "a float as a size",
        archive(state_dict(call(rebuild, storage(), number(0), tupled(op("G", bytes(8))), tupled(number(1)), b"\x89", ORDERED))),
        "integers >= 0",
    )
    yield (
        "a list as a size",
        archive(state_dict(call(rebuild, storage(), number(0), b"]", b")", b"\x89", ORDERED))),
        "a list: expected",
    )
    yield (
        "a size that changes later",
        archive(state_dict(call(rebuild, storage(), number(0), b"](K\x04e", b"](K\x01e", b"\x89", ORDERED))),
        "a list",
    )
    yield "hooks", archive(state_dict(tensor(hooks=ORDERED + text("a") + b"Ns"))), "hooks"
    yield (
        "a persistent id in another",
        archive(program(tupled(storage(), storage(), text("0"), text("cpu"), number(4)) + b"Q")),
        "a persistent id of a Storage",
    )
    yield "a persistent id of text", archive(program(text("0") + b"Q")), "a persistent id"
    yield (
        "a persistent id of a function",
        archive(program(tupled(text("storage"), rebuild, text("0"), text("cpu"), number(4)) + b"Q")),
        "a type of storage",
    )
    yield "a persistent id by name", archive(program(b"P0\n")), "opcode PERSID"
    yield "a persistent id where none may be", program(storage(), 4), "a persistent id: expected none"
    yield "a key that climbs", archive(state_dict(tensor(of=storage(key="../data.pkl")))), "there is no member"
    yield "LONG4", archive(program(b"\x8b\xff\xff\xff\x7f")), "opcode LONG4"
    yield "a long integer", archive(program(b"\x8a\xff" + bytes(255))), "an integer of 255 bytes"
    yield "BINUNICODE8", program(b"\x8d" + struct.pack("<Q", 2**63 - 1), 4), "bytes are wanted"
    yield "BINBYTES8", program(b"\x8e" + struct.pack("<Q", 2**64 - 1), 4), "bytes are wanted"
    yield "BYTEARRAY8", program(b"\x96" + struct.pack("<Q", 2**40), 5), "bytes are wanted"
    yield "BINSTRING of a negative length", archive(program(b"T\xff\xff\xff\xff")), "bytes are wanted"
    yield "a frame beyond the end", program(b"\x95" + struct.pack("<Q", 2**63), 4), "a frame of"
    yield "text that is no text", archive(program(b"X\x02\x00\x00\x00\xff\xfe")), "not utf-8"
    yield "a memo bomb", program(b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(STEPS)), 4), "opcodes and elements"
    yield "a bomb of marks", program(b"(" * (STEPS + 1), 4), "opcodes and elements"
    yield "a bomb of sets", program(b"\x8f" * (STEPS + 1), 4), "opcodes and elements"
    big = program(
        call(named("builtins", "set"), b"](" + b"N" * (STEPS // 3) + b"eq\x00") + call(named("builtins", "set"), b"h\x00") * 9, 4
    )
    yield "a list that is copied", big, "opcodes and elements"
    latin = text("x" * 50_000) + b"q\x00"
    yield (
        "text that is copied",
        program(
            call(named("_codecs", "encode"), latin, text("latin1"))
            + call(named("_codecs", "encode"), b"h\x00", text("latin1")) * 9,
            4,
        ),
        "characters of text are made",
    )
    yield "a billion laughs of tuples", archive(program(dictionary(a=laughs(lambda a, b: a + b + b"\x86")))), "opcodes and elements"
    yield (
        "a billion laughs of lists",
        archive(program(dictionary(a=laughs(lambda a, b: op("](", a, b, b"e"))))),
        "opcodes and elements",
    )
    yield "a billion laughs in arguments", laughing(), "opcodes and elements"
    yield from repeating()
    yield "deep lists", archive(program(dictionary(a=b"](" * (STEPS // 4) + b"e" * (STEPS // 4)))), "100 deep"
    yield "deep tuples", archive(program(dictionary(a=b")" + b"\x85" * (STEPS // 2)))), "100 deep"
    yield "deep modules", deep_modules(), "100 deep"
    yield "a list in itself", archive(program(dictionary(a=b"]q\x00h\x00a"))), "100 deep"
    yield "a deep tuple as a key", archive(program(b"})" + b"\x85" * (STEPS // 2) + b"Ns")), "a key a tuple"
    yield "keys that collide", archive(program(b"}" + number(2**61 - 1) + b"Ns")), "an integer below 2^60"
    yield "a key twice", archive(program(b"}" + (text("a") + b"N") + b"s" + text("a") + b"Ns")), "twice"
    yield "an empty stack", archive(program(b"R")), "the stack is empty"
    yield "no mark", archive(program(b"t")), "there is no mark"
    yield "a mark that stays open", archive(program(b"(N")), "no open mark"
    yield "a memo that is empty", archive(program(b"h\x07")), "nothing is kept"
    yield "two values", archive(program(b"NN")), "expected one value"
    yield "bytes after the end", archive(program(b"N") + b"."), "after the end of the pickle"
    yield "protocol 9", archive(program(b"N", 9)), "protocol 9"
    yield "no end", archive(b"\x80\x02N"), "before its opcode STOP"
    yield "a global without an end", archive(b"\x80\x02c" + b"a" * 1000), "each with the end of its line"
    yield (
        "a stack global of bytes",
        program(call(named("_codecs", "encode"), text("os"), text("latin1")) + text("system") + b"\x93", 4),
        "expected two texts",
    )
    yield "a codec", program(call(named("_codecs", "encode"), text("x"), text("zlib")), 4), "expected text in latin1"
    for name, given in dict(
        negative_stride=dict(stride=(-1,), offset=3),
        negative_offset=dict(offset=-1),
        negative_size=dict(size=(-4,)),
        beyond_the_end=dict(offset=1),
        far_beyond=dict(size=(2,), stride=(2**62,)),
        endless_stride=dict(size=(2**40,), stride=(0,)),
        overflowing=dict(size=(2**62, 4), stride=(4, 1)),
        overflowing_and_empty=dict(size=(0, 2**62, 2**62), stride=(1, 1, 1)),
        overlapping_rows=dict(size=(3, 3), stride=(0, 1)),
        other_rank=dict(size=(2, 2)),
        too_many_axes=dict(size=(1,) * 33, stride=(1,) * 33),
    ).items():
        yield f"a tensor, {name}", archive(state_dict(tensor(**given))), "tensor_v2: "
    yield "a storage longer than its record", archive(state_dict(tensor(of=storage(numel=2**40)))), "16 bytes for"
    yield "a storage of a negative length", archive(state_dict(tensor(of=storage(numel=-4)))), "an integer >= 0"
    yield (
        "a storage of two types",
        archive(state_dict(ok, tensor(size=(2,), of=storage("DoubleStorage", numel=2)))),
        "storage '0' is",
    )
    yield (
        "many copies of one storage",
        archive(state_dict(*[tensor((512, 512), (1, 512), of=storage(numel=2**18))] * 100), {"0": bytes(2**20)}),
        "bytes of tensors",
    )
    yield (
        "a bool of 7",
        archive(state_dict(tensor(of=storage("BoolStorage", numel=4))), {"0": b"\x07\x00\x00\x01"}),
        "other than 0 and 1",
    )
    yield (
        "two tensors of one name",
        archive(program(b"}" + op("(", text("a.b"), ok, text("a"), dictionary(b=tensor()), b"u"))),
        "two tensors 'a.b'",
    )
    for name in ("../evil", "/etc/evil", "archive/../../evil", "C:/evil", "archive\\evil"):
        yield f"a member {name}", archive(state_dict(ok), more=((name, b"x"),)), "expected a name of the form"
    yield "a zip bomb", archive(state_dict(ok), {"0": bytes(1 << 24)}, compression=zipfile.ZIP_DEFLATED), "as torch.save stores it"
    yield "overlapping members", overlapping(), "inside another member"
    yield "a member twice", twice(), "twice: expected one of each name"
    yield (
        "a checksum that differs",
        archive(state_dict(ok), {"0": b"canary_canary_16"}).replace(b"canary_canary_16", b"canary_canary_17"),
        "the checksum",
    )
    yield "another byte order", archive(state_dict(ok), byteorder=b"big"), "byte order b'big'"
    yield "no pickle", archive(state_dict(ok)).replace(b"data.pkl", b"data.pk_"), "0 members FOLDER/data.pkl"
    yield (
        "TorchScript",
        archive(state_dict(ok), more=(("archive/code/m.py", b"x"), ("archive/constants.pkl", b"x"))),
        "a TorchScript archive",
    )
    yield "half an archive", archive(state_dict(ok))[:-30], "not a zip archive"
    yield "another byte order of a stream", stream(state_dict(ok), system=dict(little_endian=False)), "byte order"
    yield "a stream with more", stream(state_dict(ok), tail=b"x"), "1 bytes after the last storage"
    yield "a stream with less", stream(state_dict(ok))[:-1], "15 bytes for 4 elements"
    yield "a stream of another length", stream(state_dict(ok), data=((5, bytes(20)),)), "another number of elements"
    yield "a stream with other keys", stream(state_dict(ok), keys=("1",)), "the list of storages"
    yield (
        "a stream of a view",
        stream(state_dict(tensor(of=storage(more=tupled(text("a"), number(0), number(1)))))),
        "no view of another one",
    )
    yield "a nested stream with a global", module(nested(system)), "os.system"
    yield "a nested stream that rebuilds", module(nested(ok)), "tensor_v2: expected *Storage of torch"
    yield (
        "a nested stream in another",
        module(nested(call(named("torch.storage", "_load_from_bytes"), blob(b"")))),
        "_load_from_bytes",
    )
    yield "a nested stream of no storage", module(nested(b"N", data=(), keys=())), "expected a storage"
    yield "a nested stream with more", module(nested(tail=b"x")), "after the last storage"
    yield (
        "a nested stream of no stream",
        module(call(named("torch.storage", "_load_from_bytes"), blob(b"abc"))),
        "expected PROTO first",
    )
    yield "another version of persistence", program(persistent(version=number(7)), 4), "version 6"
    yield "an unknown class", program(persistent(class_name=text("Evil")), 4), "the class 'Evil'"
    yield "a list as a class", program(persistent(class_name=b"]"), 4), "the class a list"
    yield "a parameter that is none", module(number(3)), "_parameters['weight'] of SongUNet is 3"
    yield "members that are no dict", program(dictionary(ema=persistent(state=dictionary(_modules=b"]"))), 4), "expected a dict"
    dtype = lambda code: call(named("numpy", "dtype"), text(code), b"\x89", b"\x88")
    yield "an array of objects", program(dtype("O8"), 4), "'O8': expected one of f8"
    yield (
        "a number of other bytes",
        program(call(named("numpy._core.multiarray", "scalar"), dtype("f8"), blob(bytes(4))), 4),
        "the bytes of one",
    )
    array = lambda *parts: program(call(named("numpy._core.numeric", "_frombuffer"), *parts), 4)
    yield "an array beyond its bytes", array(blob(bytes(8)), dtype("f8"), tupled(number(2**40)), text("C")), "8 bytes for the shape"
    yield "an array of no order", array(blob(bytes(8)), dtype("f8"), tupled(number(1)), b"]"), "the order C or F"
    yield "an empty file", b"", "begins with b''"
    yield "another file", b"\x89PNG\r\n\x1a\n", "expected a zip archive or a stream"


def laughing():
    kwargs = laughs(lambda a, b: op("](", a, b, b"e"))
    weight = call(named("torch._utils", "_rebuild_parameter"), tensor(of=nested()), b"\x88", ORDERED)
    state = dictionary(_parameters=dictionary(weight=weight), _init_kwargs=dictionary(a=kwargs))
    return program(dictionary(ema=persistent(state=state)), 4)


def repeating():
    """What is written once and named again and again: a file of 100 kB says megabytes or takes minutes."""
    weight = dictionary(weight=tensor(of=nested()))
    ema = lambda state: program(dictionary(ema=persistent(state=state)), 4)
    keys = text("a" * 5000) + b"q\x01", text("b" * 5000) + b"q\x02"
    body = tensor() + b"q\x03"
    for level in range(10):
        # Below the dict of a level lies what it holds, which its tuple keeps.
        first, second = keys if level == 0 else (b"h\x01", b"h\x02")
        held, made = bytes([level + 3]), bytes([level + 4])
        body = tupled(body, b"}" + op("(", first, b"h" + held, second, b"h" + held, b"u") + b"q" + made)
    yield "names that double", archive(program(dictionary(a=body))), "characters of text are made"
    long = text("x" * 100_000) + b"q\x00"
    for what, repeated in (
        ("a text", op("](", long, b"h\x00" * 200, b"e")),
        ("a key", op("](", b"}" + long + b"Ns", b"}h\x00Ns" * 200, b"e")),
    ):
        yield f"{what} many times in arguments", ema(dictionary(_parameters=weight, _init_args=repeated)), "characters of text"
    part = persistent(state=dictionary(_init_args=op("](", b"N" * 3000, b"e"))) + b"q\x00"
    parts = dictionary(**{f"m{i}": b"h\x00" if i else part for i in range(20)})
    yield "arguments of one module many times", ema(dictionary(_parameters=weight, _modules=parts)), "opcodes and elements"
    names = op("](", *(text(f"b{i}") for i in range(2000)), b"e")
    for what, fields in (
        ("names left out", dict(_non_persistent_buffers_set=names)),
        ("parameters of none", dict(_parameters=dictionary(**{f"b{i}": b"N" for i in range(2000)}))),
    ):
        part = persistent(class_name=text("UNetBlock"), state=dictionary(**fields)) + b"q\x00"
        parts = dictionary(**{f"m{i}": b"h\x00" if i else part for i in range(100)})
        yield f"{what} many times", ema(dictionary(_parameters=weight, _modules=parts)), "opcodes and elements"
    yield "a name left out that is a list", ema(dictionary(_parameters=weight, _non_persistent_buffers_set=b"](]e")), "a key a list"


def deep_modules(depth=300):
    body = dictionary(_modules=dictionary())
    made = named("torch.nn.modules.container", "Sequential") + b")\x81"
    for _ in range(depth):
        body = dictionary(_modules=dictionary(a=made + body + b"b"))
    return program(dictionary(ema=persistent(state=body)), 4)


def twice():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return archive(state_dict(tensor()), more=(("archive/data/0", bytes(16)),))


def plain(value):
    """An argument of a network."""
    if isinstance(value, list):
        return op("](", *map(plain, value), b"e")
    if isinstance(value, float):
        return op("G", struct.pack(">d", value))
    return number(value) if isinstance(value, int) else text(value)


def published(tensors, kwargs, outer="EDMPrecond", inner="SongUNet", **attributes):
    """A pickle of a network in its preconditioner, as EDM is published, of float32 tensors by name."""

    def parameter(array):
        array = np.ascontiguousarray(array)
        strides = [stride // array.itemsize for stride in array.strides]
        held = nested(storage(numel=array.size, more=b"N"), data=((array.size, array.tobytes()),))
        return call(named("torch._utils", "_rebuild_parameter"), tensor(array.shape, strides, of=held), b"\x88", ORDERED)

    def layer(prefix):
        names = [name.removeprefix(prefix) for name in tensors if name.startswith(prefix)]
        below = dict.fromkeys(name.partition(".")[0] for name in names if "." in name)
        return dict(
            _parameters=dictionary(**{name: parameter(tensors[prefix + name]) for name in names if "." not in name}),
            _modules=dictionary(**{name: module(prefix, name) for name in below}),
        )

    def module(prefix, name):
        parts = layer(f"{prefix}{name}.")
        if name in ("enc", "dec"):
            return named("torch.nn.modules.container", "ModuleDict") + b")\x81" + dictionary(**parts) + b"b"
        if (prefix, name) == ("", "model"):
            arguments = dictionary(**{key: plain(value) for key, value in kwargs.items()})
            return persistent(class_name=text(inner), state=dictionary(**parts, _init_args=b")", _init_kwargs=arguments))
        return persistent(class_name=text("UNetBlock"), state=dictionary(**parts))

    known = {name: plain(value) for name, value in attributes.items()}
    state = dictionary(**layer(""), **known, _init_args=b")", _init_kwargs=dictionary())
    return program(dictionary(ema=persistent(class_name=text(outer), state=state)), 4)
