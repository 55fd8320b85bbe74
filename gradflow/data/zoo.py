"""The torchvision data sets that gradflow opens by name. Data only: no torchvision import."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ZooEntry:
    """A torchvision class, the keyword arguments of each labelled part, and how to train on it."""

    dataset: str
    parts: tuple[dict[str, object], ...]
    image_size: int = 224  # px
    mirror: bool = True


def _splits(*names: str) -> tuple[dict[str, object], ...]:
    return tuple({"split": name} for name in names)


_TRAIN_AND_TEST: tuple[dict[str, object], ...] = ({"train": True}, {"train": False})

# A mirrored digit, letter or traffic sign ("keep right") is another class or none.
ZOO = {
    "cifar10": ZooEntry("CIFAR10", _TRAIN_AND_TEST, 32),
    "cifar100": ZooEntry("CIFAR100", _TRAIN_AND_TEST, 32),
    "fashionmnist": ZooEntry("FashionMNIST", _TRAIN_AND_TEST, 32),
    "mnist": ZooEntry("MNIST", _TRAIN_AND_TEST, 32, mirror=False),
    "kmnist": ZooEntry("KMNIST", _TRAIN_AND_TEST, 32, mirror=False),
    "usps": ZooEntry("USPS", _TRAIN_AND_TEST, 32, mirror=False),
    "svhn": ZooEntry("SVHN", _splits("train", "test"), 32, mirror=False),
    "gtsrb": ZooEntry("GTSRB", _splits("train", "test"), 32, mirror=False),
    "eurosat": ZooEntry("EuroSAT", ({},), 64),
    "stl10": ZooEntry("STL10", _splits("train", "test"), 96),
    "caltech101": ZooEntry("Caltech101", ({},)),
    "caltech256": ZooEntry("Caltech256", ({},)),
    "country211": ZooEntry("Country211", _splits("train", "valid", "test")),
    "dtd": ZooEntry("DTD", _splits("train", "val", "test")),
    "fgvcaircraft": ZooEntry("FGVCAircraft", _splits("trainval", "test")),
    "flowers102": ZooEntry("Flowers102", _splits("train", "val", "test")),
    "food101": ZooEntry("Food101", _splits("train", "test")),
    "imagenette": ZooEntry("Imagenette", _splits("train", "val")),
    "oxfordiiitpet": ZooEntry("OxfordIIITPet", _splits("trainval", "test")),
    "sun397": ZooEntry("SUN397", ({},)),
}
