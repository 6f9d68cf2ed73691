"""Flow teaches in training only; RGB answers alone, behind a frozen part of its backbone. How to run it: README.md."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from kdcache.backbones.i3d import I3DTail
from kdcache.methods.contract import Batch, BatchSource, Data, Input, Outputs, Predictor, Stage, predict_with, reseed
from kdcache.methods.labels import held_out_sets, keep_fraction, labelled_sets
from kdcache.methods.options import LabelOptions, TrainOptions
from kdcache.methods.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Options(LabelOptions, TrainOptions):
    width: int = 64  # of the embedding
    lam: float = 1.0  # weight of the distance to the flow network's embedding


class Network(nn.Module):
    def __init__(self, options: Options, data: Data, name: str) -> None:
        super().__init__()
        reseed(data, name)
        classes = len(data.classes[options.target])
        self.block = I3DTail(classes).get_submodule("Mixed_4b")
        self.block.load_state_dict({k[9:]: v for k, v in data.backbone(name).items() if k.startswith("Mixed_4b.")})
        self.embed, self.classify = nn.Linear(512, options.width), nn.Linear(options.width, classes)
        self.to(data.device)

    def forward(self, x: Tensor) -> Outputs:  # [B, 480, l, h, w] → [B, C], [B, width], [B, 512, l, h, w]
        feature_map = self.block(x)
        embedding = self.embed(feature_map.mean((2, 3, 4))).relu()
        return {"logits": self.classify(embedding), "embedding": embedding, "map": feature_map}


def inputs(options: Options) -> tuple[Input, ...]:
    flow = Input(name="flow", stream="i3d-flow/*", axes="CTHW", when="train", extract=("i3d-flow/mixed4a",))
    return Input(name="rgb", stream="i3d-rgb/*", axes="CTHW", extract=("i3d-rgb/mixed4a",)), flow


def resolve(options: Options, data: Data) -> Options:
    return replace(options, target=options.choose_target(data))


def stages(options: Options, data: Data) -> Iterator[Stage]:
    train = data.splits["train"]
    S, _ = labelled_sets(y := keep_fraction(train.labels[options.target], options.label_fraction, options.label_seed))
    rgb, flow = ({name: (data.inputs[name], train.rows["clip"][S])} for name in ("rgb", "flow"))
    held_out = {
        name: held_out_sets(data, options.target, {name: data.inputs[name]}, "clip") for name in ("rgb", "flow")
    }

    def supervised(batch: Batch) -> Outputs:
        return {"CE": cross_entropy(T(batch["flow"])["logits"], batch["y"])}

    T = Network(options, data, "flow")
    source = BatchSource(flow, {"y": y[S]})
    yield options.stage("flow", T, source, supervised, held_out["flow"], predict=predict_with(T, "flow"))

    def distilled(batch: Batch) -> Outputs:
        out, target = R(batch["rgb"]), teacher(batch)["embedding"]
        return {"CE": cross_entropy(out["logits"], batch["y"]), "L_M": options.lam * mse_loss(out["embedding"], target)}

    teacher = Teacher(T, lambda b: T(b["flow"]), data, flow, options.batch_size, ["embedding"])
    R, (more, fields) = Network(options, data, "rgb"), teacher.wants()
    head = [*R.embed.parameters(), *R.classify.parameters()]  # what is not optimised is frozen, batch norms included
    source = BatchSource({**rgb, **more}, {"y": y[S], **fields})
    yield options.stage("rgb", R, source, distilled, held_out["rgb"], parameters=head, predict=predict_with(R, "rgb"))


def predictor(options: Options, data: Data) -> Predictor:
    R, inputs = Network(options, data, "rgb"), {"rgb": data.inputs["rgb"]}
    return Predictor(stage="rgb", module=R, predict=predict_with(R, "rgb"), inputs=inputs, role="clip")
