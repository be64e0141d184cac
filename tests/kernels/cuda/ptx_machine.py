"""Runs the PTX of a kernel, instruction by instruction, on arrays of this process.

The simulator runs the Python of the kernels; this runs what the compiler makes of them, with its types,
promotions, addresses and roundings. It knows the instructions that the kernels have, refuses any other, and
refuses to read or write outside the arrays that the kernel was given. The threads of a block take turns,
from barrier to barrier, in random order.

An array argument is, in Numba's convention, the parameters (meminfo, parent, n, itemsize, data, shape…,
strides…).
"""

import ctypes
import re
from collections.abc import Callable
from typing import Any

import numpy as np

SIZES = {"u8": 1, "u16": 2, "b16": 2, "u32": 4, "s32": 4, "b32": 4, "f32": 4, "u64": 8, "s64": 8, "b64": 8}
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "leu": lambda a, b: not a > b,
    "equ": lambda a, b: not (a < b or a > b),
}
rng = np.random.default_rng(0)


def as_type(value: Any, kind: str) -> Any:
    """A register's content as the type of an instruction: registers hold unsigned integers or float32."""
    if kind == "f32":
        return value if isinstance(value, np.float32) else np.uint32(value).view(np.float32)
    if kind == "pred":
        return bool(value)
    bits = 8 * SIZES[kind]
    value = int(value.view(np.uint32)) if isinstance(value, np.float32) else int(value)
    value &= (1 << bits) - 1
    return value - (1 << bits) if kind[0] == "s" and value >> (bits - 1) else value


def signed_quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def dot4(a: int, b: int, c: int) -> int:
    """Four unsigned bytes times four signed ones."""
    for shift in (0, 8, 16, 24):
        c += (a >> shift & 255) * as_type((b >> shift & 255) << 24, "s32") // (1 << 24)
    return c


def insert_bits(source: int, target: int, first: int, n: int) -> int:
    mask = ((1 << n) - 1) << first
    return target & ~mask | source << first & mask


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": signed_quotient,
    "rem": lambda a, b: a - signed_quotient(a, b) * b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: not a if isinstance(a, bool) else ~a,
    "neg": lambda a: -a,
    "abs": abs,
    "min": min,
    "max": max,
    "shl": lambda a, b: a << b if b < 64 else 0,
    "shr": lambda a, b: a >> b,
    "fma": lambda a, b, c: np.float32(np.float64(a) * np.float64(b) + np.float64(c)),
    "mad": lambda a, b, c: a * b + c,
    "dp4a": dot4,
    "bfi": insert_bits,
    "mov": lambda a: a,
}


class Kernel:
    """One kernel: ``kernel[grid, threads, stream](*arguments)`` as in Numba, on the simulator's arrays."""

    def __init__(self, ptx: str) -> None:
        head, body = ptx.split("\n{\n", 1)
        self.n_parameters = head.count(".param ")
        self.shared = {name: int(size) for name, size in re.findall(r"\.shared .*? (\w+)\[(\d+)\];", head)}
        self.code: list[tuple[str | None, bool, str, list[str]]] = []
        self.labels: dict[str, int] = {}
        for line in body.rsplit("}", 1)[0].splitlines():
            line = line.split("//")[0].strip().strip("{} \t")
            if line.endswith(":"):
                self.labels[line[:-1]] = len(self.code)
            elif line and not line.startswith("."):
                match = re.fullmatch(r"(?:@(!?)(%p\d+)\s+)?([\w.]+)\s*(.*?);?", line)
                assert match, line
                negated, guard, name, operands = match.groups()
                self.code.append((guard, negated == "!", name, [o.strip() for o in operands.split(",")]))

    def __getitem__(self, configuration: tuple[Any, ...]) -> Callable[..., None]:
        grid, threads = configuration[:2]
        return lambda *arguments: self.launch(
            grid if isinstance(grid, tuple) else (grid, 1), threads, arguments
        )

    def launch(self, grid: tuple[int, int], n_threads: int, arguments: tuple[Any, ...]) -> None:
        parameters, memory = [], []
        for argument in arguments:
            array = getattr(argument, "_ary", argument)
            if isinstance(array, np.ndarray):
                start = array.ctypes.data
                memory.append((start, start + array.nbytes))
                parameters += [0, 0, array.size, array.itemsize, start, *array.shape, *array.strides]
            else:
                parameters.append(int(array))
        assert len(parameters) == self.n_parameters
        for y in range(grid[1]):
            for x in range(grid[0]):
                Block(self, parameters, memory, (x, y), grid, n_threads).run()


class Block:
    """One block of a launch."""

    def __init__(
        self, kernel: Kernel, parameters: list[int], memory: list[Any], at: Any, grid: Any, n_threads: int
    ) -> None:
        self.kernel, self.parameters = kernel, parameters
        self.symbols: dict[str, int] = {}
        self.buffers = {name: np.full(size, 0xA5, np.uint8) for name, size in kernel.shared.items()}
        self.memory = list(memory)
        for name, buffer in self.buffers.items():
            self.symbols[name] = buffer.ctypes.data
            self.memory.append((buffer.ctypes.data, buffer.ctypes.data + buffer.nbytes))
        self.special = {
            "%ctaid.x": at[0],
            "%ctaid.y": at[1],
            "%nctaid.x": grid[0],
            "%nctaid.y": grid[1],
            "%ntid.x": n_threads,
        }
        self.threads: list[dict[str, Any]] = [{"%tid.x": number, "pc": 0} for number in range(n_threads)]

    def run(self) -> None:
        waiting = self.threads
        while waiting:
            for i in rng.permutation(len(waiting)):
                self.run_to_barrier(waiting[i])
            barriers = {thread["pc"] for thread in self.threads}
            assert len(barriers) == 1, f"a barrier is not reached by all threads: {barriers}"
            waiting = [thread for thread in waiting if thread["pc"] >= 0]

    def run_to_barrier(self, thread: dict[str, Any]) -> None:
        """Goes on until the next barrier or the end, where pc is −1."""
        while True:
            guard, negated, name, operands = self.kernel.code[thread["pc"]]
            thread["pc"] += 1
            if guard is not None and thread[guard] == negated:
                continue
            if name == "bar.sync":
                return
            if name == "ret":
                thread["pc"] = -1
                return
            if name in ("bra", "bra.uni"):
                thread["pc"] = self.kernel.labels[operands[0]]
            else:
                self.execute(thread, name.split("."), operands)

    def execute(self, thread: dict[str, Any], name: list[str], operands: list[str]) -> None:
        operation, kind = name[0], name[-1]
        if operation == "st":
            self.cell(thread, operands[0], kind).value = as_type(self.value(thread, operands[1]), kind)
            return
        to = operands[0]
        sources = operands[1:]
        if operation == "ld" and name[1] == "param":
            result: Any = self.parameters[int(sources[0].rstrip("]").rsplit("_", 1)[1])]
        elif operation == "ld":
            result = self.cell(thread, sources[0], kind).value
            result = np.float32(result) if kind == "f32" else result
        elif operation == "atom":
            cell = self.cell(thread, sources[0], kind)
            result = cell.value
            cell.value = OPERATIONS[name[2]](result, as_type(self.value(thread, sources[1]), kind))
        elif operation == "setp":
            a, b = (as_type(self.value(thread, source), kind) for source in sources)
            result = COMPARISONS[name[1]](a, b)
        elif operation == "selp":
            a, b, choice = (self.value(thread, source) for source in sources)
            result = as_type(a if choice else b, kind)
        elif operation in ("cvt", "cvta"):
            result = self.convert(name, self.value(thread, sources[0]))
        elif name[:2] == ["mul", "wide"]:
            a, b = (as_type(self.value(thread, source), kind) for source in sources)
            result = a * b
        else:
            n_typed = 1 if operation in ("shl", "shr") else len(sources)
            kinds = ["u32", "s32", "s32"] if operation == "dp4a" else [kind] * n_typed + ["u32"]
            if operation == "bfi":
                kinds[2:] = ["u32", "u32"]
            arguments = [as_type(self.value(thread, s), k) for s, k in zip(sources, kinds, strict=False)]
            result = OPERATIONS[operation](*arguments)
        thread[to] = self.register(to, result)

    @staticmethod
    def convert(name: list[str], value: Any) -> Any:
        """cvt.TO.FROM, with or without a rounding; cvta leaves an address as it is."""
        to, origin = name[-2:]
        if name[0] == "cvta":
            return value
        if (to, origin) == ("f32", "f16"):
            return np.float32(np.uint16(value).view(np.float16))
        if to == "f32":
            return np.float32(as_type(value, origin))
        return as_type(as_type(value, origin), to)

    @staticmethod
    def register(name: str, value: Any) -> Any:
        """The value as a register of this class holds it."""
        if name.startswith("%p"):
            return bool(value)
        if name.startswith("%f"):
            return as_type(value, "f32")
        return as_type(value, {"%rd": "u64", "%rs": "u16"}.get(name[:3], "u32"))

    def value(self, thread: dict[str, Any], operand: str) -> Any:
        if operand in thread:
            return thread[operand]
        if operand in self.special:
            return self.special[operand]
        if operand in self.symbols:
            return self.symbols[operand]
        if operand.startswith("0f"):
            return np.uint32(int(operand[2:], 16)).view(np.float32)
        return int(operand, 0)

    def cell(self, thread: dict[str, Any], operand: str, kind: str) -> Any:
        """The memory behind an address, inside one of the arrays of the launch."""
        base, _, offset = operand.strip("[]").partition("+")
        address = self.value(thread, base) + int(offset or 0)
        end = address + SIZES[kind]
        assert any(first <= address and end <= last for first, last in self.memory), f"outside: {operand}"
        assert address % SIZES[kind] == 0, f"misaligned: {operand}"
        kinds = {
            "u16": ctypes.c_uint16,
            "u32": ctypes.c_uint32,
            "b32": ctypes.c_uint32,
            "s32": ctypes.c_int32,
            "u64": ctypes.c_uint64,
            "f32": ctypes.c_float,
        }
        return kinds[kind].from_address(address)
