"""The tests of ONNX's Attention, answered by `flash run`: every test that gives attention something to compute.

    python3 tests/onnx/nodes.py FLASH [--node-data FOLDER]

FLASH is the built example. Cases come from the generators of the installed package `onnx`, or from FOLDER, the folder
onnx/backend/test/data/node of an older one. Needs onnx, numpy and ml_dtypes.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import warnings

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper

TYPES = {"float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL", "int64": "I64", "int32": "I32"}
OF_NAME = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# Files of onnx 1.20 that add the bias before softcap; its own text, later versions and cuDNN cap first.
EXEMPT = {"test_attention_3d_with_past_and_present_qk_matmul_softcap", "test_attention_4d_with_qk_matmul_softcap"}
# The largest difference from ONNX's answer, relative to its largest number. ONNX computes in the type of the inputs, whose unit is
# 2^-10 in f16 and 2^-7 in bf16: each side is rounded once at the end, ONNX on its way too.
ALLOWED = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}


def write(path, tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        tensor = np.ascontiguousarray(tensor)
        end = len(data) + tensor.nbytes
        header[name] = {"dtype": TYPES[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": [len(data), end]}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def read(path):
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], OF_NAME[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def generated():
    """(name, node, inputs, outputs) of the installed package's generators."""
    from onnx.backend.test.case.node import collect_testcases

    # Generators of other operations warn of their own numbers.
    warnings.simplefilter("ignore")
    for case in collect_testcases("Attention"):
        graph = case.model.graph
        if [node.op_type for node in graph.node] == ["Attention"]:
            for inputs, outputs in case.data_sets:
                yield case.name, graph.node[0], list(inputs), list(outputs)


def of_files(folder):
    def tensors(case, kind):
        paths = case.glob(f"test_data_set_0/{kind}_*.pb")
        return [
            numpy_helper.to_array(onnx.load_tensor(path))
            for path in sorted(paths, key=lambda path: int(path.stem.split("_")[1]))
        ]

    for case in sorted(folder.glob("test_attention_*")):
        node = onnx.load(case / "model.onnx").graph.node
        if [one.op_type for one in node] == ["Attention"]:
            yield case.name, node[0], tensors(case, "input"), tensors(case, "output")


def heads_first(tensor, heads):
    """3-D inputs are batch × rows × (heads · dim)."""
    if tensor.ndim == 4:
        return tensor
    batch, rows, width = tensor.shape
    return tensor.reshape(batch, rows, heads, width // heads).transpose(0, 2, 1, 3)


def command_of(node, inputs):
    """The tensors and options of `flash run`."""
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    given = dict(zip(["q", "k", "v", "mask", "past_k", "past_v", "lengths"], [None] * 7))
    rest = iter(inputs)
    for name, slot in zip(node.input, given):
        given[slot] = next(rest) if name else None
    heads, heads_kv = attributes.pop("q_num_heads", None), attributes.pop("kv_num_heads", None)
    tensors = {"q": heads_first(given["q"], heads)}
    for name in "kv":
        new = heads_first(given[name], heads_kv)
        past = given[f"past_{name}"]
        tensors[name] = new if past is None else np.concatenate([past, new], axis=2)
    past = 0 if given["past_k"] is None else given["past_k"].shape[2]
    rows, keys = tensors["q"].shape[2], tensors["k"].shape[2]

    is_causal = attributes.pop("is_causal", 0)
    left, right = (attributes.pop(f"{side}_window_size", -1) for side in ("left", "right"))
    options = []
    lengths = given["lengths"]
    # By lengths the last row stands at the last key, otherwise the first row behind the past.
    alignment = "bottom-right" if lengths is not None or past else "top-left"
    mask = given["mask"]
    if past and (is_causal or left >= 0 or right >= 0):
        # With as many keys as this the last row stands at the last one: others are unseen, or are there but hidden.
        needed = past + rows
        assert needed >= keys or is_causal or right == 0, "rows that see keys after the last row's own"
        if needed > keys and mask is None:
            mask = np.ones((1, keys), bool)
        for name in "kv":
            missing = [(0, 0), (0, 0), (0, max(0, needed - keys)), (0, 0)]
            tensors[name] = np.pad(tensors[name], missing)[:, :, :needed]
        keys = needed
    if lengths is not None:
        tensors["seqlens_kv"] = lengths.astype(np.int64)
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        if mask.shape[3] > keys:
            mask = mask[..., :keys]
        elif mask.shape[3] not in (1, keys):
            hidden = False if mask.dtype == bool else -np.inf
            missing = [(0, 0)] * 3 + [(0, keys - mask.shape[3])]
            mask = np.pad(mask, missing, constant_values=hidden)
        tensors["mask" if mask.dtype == bool else "bias"] = mask
    if is_causal:
        options.append(f"--causal={alignment}")
    if left >= 0 or right >= 0:
        sides = [str(side) if side >= 0 else "inf" for side in (left, right)]
        options += ["--window", ",".join(sides)]
    if "scale" in attributes:
        options += ["--scale", repr(attributes.pop("scale"))]
    if attributes.get("softcap"):
        options += ["--softcap", repr(attributes["softcap"])]
    attributes.pop("softcap", None)
    # Sums of softmax are always in f32 here.
    attributes.pop("softmax_precision", None)
    mode = attributes.pop("qk_matmul_output_mode", 0)
    assert not attributes, f"attributes that nobody reads: {attributes}"
    return tensors, options, mode


def differs(found, expected):
    """None, or what is wrong."""
    allowed = ALLOWED[expected.dtype.name]
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    if found.shape != expected.shape:
        return f"shape {found.shape}, not {expected.shape}"
    # NaN where ONNX has NaN.
    error = np.abs(found - expected) / max(np.nanmax(np.abs(expected), initial=0), 1e-30)
    alike = (found == expected) | (np.isnan(found) & np.isnan(expected))
    worst = np.max(np.where(alike, 0, error), initial=0)
    return None if worst <= allowed else f"off by {worst:.1e} of the largest, {allowed:.0e} allowed"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("flash")
    parser.add_argument("--node-data", type=pathlib.Path)
    parser.add_argument("--only", default="", help="a part of the names of tests")
    arguments = parser.parse_args()
    cases = of_files(arguments.node_data) if arguments.node_data else generated()
    passed, failed, probabilities = 0, [], 0
    with tempfile.TemporaryDirectory() as folder:
        question, answer = pathlib.Path(folder, "in.safetensors"), pathlib.Path(folder, "out.safetensors")

        def run(options):
            done = subprocess.run([arguments.flash, "run", question, answer, *options], capture_output=True, text=True)
            return done.stderr.strip() if done.returncode else None

        for name, node, inputs, outputs in cases:
            if arguments.only not in name or (arguments.node_data and name in EXEMPT):
                continue
            expected = dict(zip(filter(None, node.output), outputs))
            y = outputs[0]
            try:
                tensors, options, mode = command_of(node, inputs)
            except AssertionError as refusal:
                failed.append((name, str(refusal)))
                continue
            write(question, tensors)
            heads = tensors["q"].shape[1]
            wrong = run(options)
            if wrong is None:
                o = read(answer)["o"]
                if y.ndim == 3:
                    o = o.transpose(0, 2, 1, 3).reshape(y.shape)
                wrong = differs(o, y)
            # The fourth output after softmax is the probabilities.
            if wrong is None and mode == 3 and len(node.output) == 4 and node.output[3]:
                found = []
                for head in range(heads):
                    wrong = wrong or run([*options, "--probabilities", f"{head}:0..{tensors['q'].shape[2]}"])
                    found.append(read(answer)["probabilities"])
                wrong = wrong or differs(np.concatenate(found, axis=1), expected[node.output[3]])
                probabilities += 1
            if wrong:
                failed.append((name, wrong))
            else:
                passed += 1
    for name, wrong in failed:
        print(f"{name}: {wrong}")
    print(f"{passed} passed, {probabilities} of them with probabilities; {len(failed)} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
