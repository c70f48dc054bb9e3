"""Runs a static AArch64 Linux program on a machine of another kind, under the emulator of the package `unicorn`.

    python tests/kernels/cpu/aarch64.py PROGRAM [ARGUMENT ...]

Enough of Linux for a program that computes on one thread and prints. `tests/kernels/test_aarch64.py` runs the kernels' own tests
in it. The emulator knows dot products (sdot) but not usdot of the i8mm extension. Each is replaced by a jump to its sum in sdots,
which is exact: u·s = (u - 128)·s + 2·(64·s).
"""

import struct
import sys
import time
from pathlib import Path

import unicorn
from unicorn import arm64_const as arm

PAGE = 0x1000
STACK, STACK_BYTES = 0x7F0000000, 8 << 20
HEAP, HEAP_BYTES = 0x400000000, 4 << 30  # pages of it are made when they are asked for
DETOURS, DETOUR_BYTES = 0x4000000, 16 << 20  # within reach of a jump from the program
HWCAP = 1 << 0 | 1 << 1 | 1 << 20  # floating point, NEON, dot products
HWCAP2 = 1 << 13  # i8mm
NO_SUCH_CALL = -38
USDOT, USDOT_MASK = 0x4E809C00, 0xFFE0FC00
PT_LOAD, EXECUTABLE = 1, 1


class Machine:
    """One program in memory, with its heap and its stack."""

    def __init__(self, program: Path, arguments: list[str]) -> None:
        self.exit_code: int | None = None
        self.emulator = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self.emulator.ctl_set_cpu_model(arm.UC_CPU_ARM64_MAX)
        self.emulator.reg_write(arm.UC_ARM64_REG_CPACR_EL1, 3 << 20)  # floating point without traps
        self.end = HEAP
        self.detours: list[int] = []
        self.calls = {
            29: lambda *_: -25,  # ioctl: not a terminal
            64: self.write,
            66: self.writev,
            93: self.leave,
            94: self.leave,
            96: lambda *_: 1,  # set_tid_address
            113: self.clock,
            135: lambda *_: 0,  # rt_sigprocmask
            215: lambda *_: 0,  # munmap: what is given back is not used again
            222: self.map,
            226: lambda *_: 0,  # mprotect
            233: lambda *_: 0,  # madvise
        }
        entry, headers = self.load(program.read_bytes())
        self.start(entry, headers, [program.name, *arguments])

    def load(self, image: bytes) -> tuple[int, tuple[int, int]]:
        """Maps the program's segments; returns its entry, and address and number of its program headers."""
        machine, entry, offset = struct.unpack_from("<HxxxxQQ", image, 18)
        size, count = struct.unpack_from("<HH", image, 54)
        if image[:5] != b"\x7fELF\x02" or machine != 183:
            sys.exit("This is no 64-bit AArch64 program.")
        headers = 0
        for number in range(count):
            kind, flags, at, address, _, stored, length, _ = struct.unpack_from(
                "<IIQQQQQQ", image, offset + number * size
            )
            if kind != PT_LOAD:
                continue
            first, last = address & -PAGE, -(-(address + length) // PAGE) * PAGE
            for page in range(first, last, PAGE):
                if not any(low <= page <= high for low, high, _ in self.emulator.mem_regions()):
                    self.emulator.mem_map(page, PAGE)
            code = bytearray(image[at : at + stored])
            if flags & EXECUTABLE:
                self.detour(code, address)
            self.emulator.mem_write(address, bytes(code))
            if at <= offset < at + stored:
                headers = address + offset - at
        self.emulator.mem_map(DETOURS, DETOUR_BYTES)
        self.emulator.mem_write(DETOURS, struct.pack(f"<{len(self.detours)}I", *self.detours))
        return entry, (headers, count)

    def detour(self, code: bytearray, address: int) -> None:
        """Replaces every usdot by a jump to its sum in sdots."""
        for at in range(0, len(code) - 3, 4):
            (word,) = struct.unpack_from("<I", code, at)
            if word & USDOT_MASK == USDOT:
                place = DETOURS + 4 * len(self.detours)
                self.detours += _in_sdots(word, place, address + at + 4)
                struct.pack_into("<I", code, at, _jump(address + at, place))

    def start(self, entry: int, headers: tuple[int, int], words: list[str]) -> None:
        """Stack as the kernel leaves it: count, arguments, no environment, what the program may know of the machine."""
        self.emulator.mem_map(STACK, STACK_BYTES)
        text = b"".join(word.encode() + b"\0" for word in words)
        strings = STACK + STACK_BYTES - 4096
        self.emulator.mem_write(strings, text + bytes(16))
        places, place = [], strings
        for word in words:
            places.append(place)
            place += len(word.encode()) + 1
        known = {3: headers[0], 4: 56, 5: headers[1], 6: PAGE, 9: entry, 16: HWCAP, 26: HWCAP2, 25: place, 0: 0}
        values = [len(words), *places, 0, 0]
        for key, value in known.items():
            values += [key, value]
        top = (strings - 8 * len(values)) & -16
        self.emulator.mem_write(top, struct.pack(f"<{len(values)}Q", *values))
        self.emulator.reg_write(arm.UC_ARM64_REG_SP, top)
        self.entry = entry

    def run(self) -> int:
        """Until the program ends; returns its exit code."""
        self.emulator.hook_add(unicorn.UC_HOOK_INTR, self.interrupted)
        try:
            self.emulator.emu_start(self.entry, 0)
        except unicorn.UcError as error:
            at = self.emulator.reg_read(arm.UC_ARM64_REG_PC)
            sys.exit(f"The emulator stopped at {at:#x}, at the bytes {self.emulator.mem_read(at, 4).hex()}: {error}.")
        return 1 if self.exit_code is None else self.exit_code

    def interrupted(self, emulator: unicorn.Uc, number: int, _: object) -> None:
        if number != 2:  # a system call
            at = emulator.reg_read(arm.UC_ARM64_REG_PC)
            print(f"Exception {number} at {at:#x}: bytes {emulator.mem_read(at - 4, 8).hex()}")
            self.leave(1)
            return
        call = emulator.reg_read(arm.UC_ARM64_REG_X8)
        given = [
            emulator.reg_read(register) for register in (arm.UC_ARM64_REG_X0, arm.UC_ARM64_REG_X1, arm.UC_ARM64_REG_X2)
        ]
        answer = self.calls[call](*given) if call in self.calls else NO_SUCH_CALL
        emulator.reg_write(arm.UC_ARM64_REG_X0, answer & (1 << 64) - 1)

    def write(self, file: int, address: int, length: int) -> int:
        out = sys.stderr if file == 2 else sys.stdout
        out.write(self.emulator.mem_read(address, length).decode())
        out.flush()
        return length

    def writev(self, file: int, vector: int, count: int) -> int:
        pieces = struct.unpack(f"<{2 * count}Q", self.emulator.mem_read(vector, 16 * count))
        return sum(self.write(file, at, length) for at, length in zip(pieces[::2], pieces[1::2], strict=True) if length)

    def map(self, _: int, length: int, __: int) -> int:
        length = -(-length // PAGE) * PAGE
        place, self.end = self.end, self.end + length
        if self.end > HEAP + HEAP_BYTES:
            return -12
        self.emulator.mem_map(place, length)
        return place

    def clock(self, _: int, address: int, __: int) -> int:
        seconds, part = divmod(time.monotonic_ns(), 10**9)
        self.emulator.mem_write(address, struct.pack("<QQ", seconds, part))
        return 0

    def leave(self, code: int, *_: int) -> int:
        self.exit_code = code & 0xFF
        self.emulator.emu_stop()
        return 0


def _jump(here: int, there: int) -> int:
    return 0x14000000 | (there - here) // 4 & 0x3FFFFFF


def _in_sdots(word: int, place: int, back: int) -> list[int]:
    """Instructions for usdot d, n, m: sdot d, n ^ 128, m and twice sdot d, 64, m; two other registers are used and restored."""
    d, n, m = word & 31, word >> 5 & 31, word >> 16 & 31
    one, two = [register for register in range(5) if register not in (d, n, m)][:2]
    code = [
        0xAD800000 | (-2 & 127) << 15 | two << 10 | 31 << 5 | one,  # stp one, two, [sp, -32]!
        0x4F00E400 | 4 << 16 | one,  # movi one, 128
        0x6E201C00 | one << 16 | n << 5 | two,  # eor two, n, one
        0x4E809400 | m << 16 | two << 5 | d,  # sdot d, two, m
        0x4F00E400 | 2 << 16 | one,  # movi one, 64
        0x4E809400 | m << 16 | one << 5 | d,
        0x4E809400 | m << 16 | one << 5 | d,
        0xACC00000 | 2 << 15 | two << 10 | 31 << 5 | one,  # ldp one, two, [sp], 32
    ]
    return [*code, _jump(place + 4 * len(code), back)]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(Machine(Path(sys.argv[1]), sys.argv[2:]).run())
