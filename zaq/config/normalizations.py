"""How networks expect pixels, by name. Apart from the card, so that a command line knows the names without torch."""

__all__ = ["ALREADY", "BLUE_FIRST", "NORMALIZATIONS"]

# name: (mean, std) of x/255, per channel; one value is for all channels
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "0-255": ((0.0,), (1 / 255,)),
    "0-1": ((0.0,), (1.0,)),
    "-1-1": ((0.5,), (0.5,)),
    "caffe": ((103.939 / 255, 116.779 / 255, 123.68 / 255), (1 / 255,) * 3),  # of blue, green, red; pixels up to 255
}
BLUE_FIRST = {"caffe"}  # those whose networks read blue, green, red
ALREADY = "none"  # the input counts as already normalised, whatever the model's card says
