#!/usr/bin/env python3
"""dxc.py LIBDXCOMPILER -O0|-O3 FILE.hlsl...: compiles each file to DXIL (cs_6_2, 16-bit types) with Microsoft's compiler.

Prints the messages of every file that is refused, then "N accepted, M refused"; exits with 1 if any was. The library has
no command line on Linux, so its COM interfaces are called through ctypes.
"""

import ctypes
import sys
import uuid

UTF8 = 65001
# The three methods of IUnknown are followed by a virtual destructor, which takes two entries in the tables of GCC and Clang.
IUNKNOWN, DESTRUCTOR = 3, 2


def guid(text):
    return (ctypes.c_byte * 16).from_buffer_copy(uuid.UUID(text).bytes_le)


CLSID_DXC_COMPILER = guid("73e22d93-e6ce-47f3-b5bf-f0664f39c1b0")
IID_DXC_COMPILER3 = guid("228b4687-5a6a-4730-900c-9702b2203f54")
IID_DXC_RESULT = guid("58346cda-dde7-4497-9461-6f87af5e0659")


class DxcBuffer(ctypes.Structure):
    _fields_ = [("pointer", ctypes.c_void_p), ("size", ctypes.c_size_t), ("encoding", ctypes.c_uint32)]


def method(pointer, index, result, *types):
    """The method of a COM object, counted from 0 without those of IUnknown."""
    table = ctypes.cast(pointer, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p)))[0]
    function = ctypes.CFUNCTYPE(result, ctypes.c_void_p, *types)(table[IUNKNOWN + DESTRUCTOR + index])
    return lambda *arguments: function(pointer, *arguments)


def release(pointer):
    table = ctypes.cast(pointer, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p)))[0]
    ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p)(table[2])(pointer)


def text_of(blob):
    start, size = method(blob, 0, ctypes.c_void_p)(), method(blob, 1, ctypes.c_size_t)()
    return ctypes.string_at(start, size).decode(errors="replace").strip("\0\n")


def compile_file(compiler, optimisation, path):
    """None if the file is accepted, else what the compiler says."""
    with open(path, "rb") as file:
        source = file.read()
    buffer = DxcBuffer(ctypes.cast(ctypes.c_char_p(source), ctypes.c_void_p), len(source), UTF8)
    options = [path, "-E", "main", "-T", "cs_6_2", "-enable-16bit-types", optimisation, "-Ges", "-HV", "2018"]
    array = (ctypes.c_wchar_p * len(options))(*options)
    result = ctypes.c_void_p()
    call = method(compiler, 0, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p,
                  ctypes.c_void_p, ctypes.c_void_p)
    status = call(ctypes.byref(buffer), array, len(options), None, ctypes.byref(IID_DXC_RESULT), ctypes.byref(result))
    if status != 0:
        return f"the compiler failed: {status & 0xFFFFFFFF:#x}"
    outcome, errors = ctypes.c_int32(-1), ctypes.c_void_p()
    method(result, 0, ctypes.c_int32, ctypes.c_void_p)(ctypes.byref(outcome))
    method(result, 2, ctypes.c_int32, ctypes.c_void_p)(ctypes.byref(errors))
    message = ""
    if errors.value:
        message = text_of(errors)
        release(errors)
    release(result)
    return None if outcome.value == 0 else message or f"refused without a message: {outcome.value & 0xFFFFFFFF:#x}"


def main():
    library, optimisation, paths = ctypes.CDLL(sys.argv[1]), sys.argv[2], sys.argv[3:]
    library.DxcCreateInstance.restype = ctypes.c_int32
    compiler = ctypes.c_void_p()
    status = library.DxcCreateInstance(CLSID_DXC_COMPILER, IID_DXC_COMPILER3, ctypes.byref(compiler))
    if status != 0:
        sys.exit(f"no compiler in {sys.argv[1]}: {status & 0xFFFFFFFF:#x}")
    refused = 0
    for path in paths:
        message = compile_file(compiler, optimisation, path)
        if message is not None:
            refused += 1
            print(f"{path}: {message[:2000]}")
    print(f"{len(paths) - refused} accepted, {refused} refused")
    sys.exit(1 if refused else 0)


main()
