"""What operators a set of ONNX files has, with attributes, opsets, ranks and which operands are constant.

Used by make.py: `report(paths)` is Markdown. An operand is `c` (computed from constants alone), `s`
(from the shape of something: the batch) or `x` (from the image), with its rank.
"""
from collections import defaultdict

import onnx
from onnx import helper, numpy_helper, shape_inference


def attribute(value):
    match value.type:
        case onnx.AttributeProto.TENSOR:
            array = numpy_helper.to_array(value.t)
            return f"{array.dtype}{list(array.shape)}" if array.size > 4 else f"{array.dtype} {array.tolist()}"
        case onnx.AttributeProto.GRAPH:
            return f"graph of {len(value.g.node)} nodes"
        case onnx.AttributeProto.STRING:
            return value.s.decode()
    value = helper.get_attribute_value(value)
    return f"{value:.4g}" if isinstance(value, float) else str(list(value) if not isinstance(value, int) else value)


class File:
    def __init__(self, path):
        self.name = path.stem
        model = onnx.load(path)
        self.opset = next(i.version for i in model.opset_import if i.domain in ("", "ai.onnx"))
        self.graph = model.graph
        self.values = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}
        self.kind = dict.fromkeys(self.values, "c")
        self.kind |= {i.name: "x" for i in self.graph.input if i.name not in self.values}
        self.ranks = {name: value.ndim for name, value in self.values.items()}
        inferred = shape_inference.infer_shapes(model, data_prop=True).graph
        for info in [*inferred.value_info, *inferred.input, *inferred.output]:
            if info.type.tensor_type.HasField("shape"):
                self.ranks[info.name] = len(info.type.tensor_type.shape.dim)
        self.producers = {}
        for node in self.graph.node:
            kinds = {self.kind.get(name, "?") for name in node.input if name}
            kind = "s" if node.op_type in ("Shape", "Size") else "x" if "x" in kinds else "s" if "s" in kinds else "c"
            for name in node.output:
                self.kind[name], self.producers[name] = kind, node
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
                self.ranks[node.output[0]] = self.values[node.output[0]].ndim

    def operands(self, names):
        texts = [self.operand(name) for name in names]
        return f"{texts[0]}, ..." if len(texts) > 4 and len(set(texts)) == 1 else ", ".join(texts)

    def operand(self, name):
        return f"{self.kind.get(name, '?')}{self.ranks.get(name, '?')}" if name else "-"

    def expression(self, name, depth=14):
        """How a shape comes about."""
        if name in self.values:
            value = self.values[name]
            return str(value.tolist()) if value.size <= 8 else f"{value.dtype}{list(value.shape)}"
        if self.kind.get(name) == "x":
            return f"x{self.ranks.get(name, '?')}"
        node = self.producers.get(name)
        if node is None or not depth:
            return "..."
        attributes = "".join(f" {a.name}={attribute(a)}" for a in node.attribute)
        if node.op_type == "Constant":
            return attributes.split("=", 1)[1]
        return f"{node.op_type}({', '.join(self.expression(i, depth - 1) if i else '-' for i in node.input)}{';' * bool(attributes)}{attributes})"


def short(names):
    """`resnet18-script-13, resnet18-script-17` as `resnet18-script-{13,17}`, at most a few."""
    groups = defaultdict(list)
    for name in sorted(names):
        head, _, tail = name.partition("-")
        groups[head].append(tail)
    texts = [f"{head}({' '.join(tails) if len(tails) < 4 else f'{len(tails)} exports'})" for head, tails in groups.items()]
    return ", ".join(texts[:8]) + (f" and {len(texts) - 8} more" if len(texts) > 8 else "")


def report(paths):
    forms = defaultdict(lambda: defaultdict(lambda: (set(), set(), set())))      # op: operands: attributes, opsets, files
    folded, shapes, subgraphs = defaultdict(set), defaultdict(set), set()
    for path in paths:
        file = File(path)
        for node in file.graph.node:
            op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
            kind = file.kind[node.output[0]]
            if op == "Constant":
                continue
            if any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute):
                subgraphs.add(f"{op} in {file.name}")
            if kind != "x":
                key = f"{op}({file.operands(node.input)}) -> {file.operand(node.output[0])}"
                folded[key].add(file.name)
                continue
            key = f"({file.operands(node.input)}) -> {file.operands(node.output)}"
            attributes, opsets, files = forms[op][key]
            attributes.update((a.name, attribute(a)) for a in node.attribute)
            opsets.add(file.opset); files.add(file.name)
            for position, name in enumerate(node.input):
                if file.kind.get(name) == "s":
                    shapes[f"{op} input {position}: `{file.expression(name)[:600]}`"].add(file.name)
    lines = [f"# Operators of {len(paths)} files", "",
             "Operands: `c` from constants alone, `s` from a shape, `x` from the image; then the rank.", "", "## On the image", ""]
    for op in sorted(forms):
        every = set().union(*(files for _, _, files in forms[op].values()))
        lines += [f"### {op}", "", f"in {len(every)} files: {short(every)}", ""]
        for key, (attributes, opsets, files) in sorted(forms[op].items()):
            names = defaultdict(set)
            for name, value in attributes:
                names[name].add(value)
            text = "; ".join(f"{name}={' | '.join(sorted(v)[:6])}{' | ...' * (len(v) > 6)}" for name, v in sorted(names.items()))
            lines.append(f"- `{key}` {text} (opsets {sorted(opsets)}; {short(files)})")
        lines.append("")
    lines += ["## On constants and shapes", ""] + [f"- `{key}`: {short(files)}" for key, files in sorted(folded.items())]
    lines += ["", "## How shapes reach the image's operators", ""] + [f"- {key}: {short(files)}" for key, files in sorted(shapes.items())]
    lines += ["", "## Nodes with subgraphs", ""] + [f"- {text}" for text in sorted(subgraphs)]
    return "\n".join(lines) + "\n"
