"""A table of torchvision's classification data sets: the class that reads each, and the shape it gets."""

from __future__ import annotations

from typing import Any, NamedTuple

Part = dict[str, Any]  # arguments of torchvision's class


class Spec(NamedTuple):
    """One data set. Images of various sizes are resized to shape[1:]."""

    text: str  # its line in `ls`, and the first of its file in conf/dataset
    shape: tuple[int, int, int]
    classes: int
    cls: str = ""  # torchvision's class
    train: tuple[Part, ...] = ({"train": True},)  # including published validation rows
    test: tuple[Part, ...] = ({"train": False},)  # empty: a fixed stratified fifth is held out
    files: tuple[str, ...] = ()  # folders and files below the root that it is read from
    idx: tuple[str, ...] = ()  # files below <cls>/raw: training images and labels, test images and labels
    archive: str = ""  # what a user without network can copy into the root instead
    mean: tuple[float, ...] = ()  # per channel, over the whole training set scaled to 0..1; (): computed when loaded
    std: tuple[float, ...] = ()
    top: int = 255  # largest pixel value
    first: int = 0  # smallest label
    transposed: bool = False  # stored column by column
    fetched: bool = True  # torchvision can download it
    uniform: bool = True  # all images have this size
    normalise: str = "standard"  # unless `load` is given another, as in conf/dataset


_IDX = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def _emnist(split: str, text: str, classes: int, **more: Any) -> Spec:
    train, test = (({"split": split, "train": first},) for first in (True, False))
    idx = tuple(f"emnist-{split}-" + file.replace("t10k", "test") for file in _IDX)
    more |= {"idx": idx, "archive": "EMNIST/raw/gzip.zip", "transposed": True}
    return Spec(text, (1, 28, 28), classes, "EMNIST", train, test, **more)


def _split(*train: str, test: str = "test", **more: Any) -> dict[str, Any]:
    return {
        "train": tuple({"split": s, **more} for s in train),
        "test": ({"split": test, **more},),
    }


_RGB = (3, 64, 64)
_WHOLE: dict[str, Any] = {"train": ({},), "test": ()}

# Mean and std of digits and fashion_mnist were computed (tests repeat it). The others are the published ones of the
# training set, not recomputed. Traps: .1904, .3475 are also quoted for KMNIST; the std often quoted for CIFAR-10
# (.2023, .1994, .2010) is the mean over images of each image's std, not the std of the pixels.
SPECS = {
    "digits": Spec(
        "handwritten digits, 10 classes, 1x8x8, 1,438 + 359, no download (Alpaydin & Kaynak 1998)",
        (1, 8, 8), 10, top=16, mean=(0.3047,), std=(0.3756,), normalise="unit",
    ),
    "mnist": Spec(
        "handwritten digits, 10 classes, 1x28x28, 60,000 + 10,000 (LeCun et al. 1998)",
        (1, 28, 28), 10, "MNIST", idx=_IDX, mean=(0.1307,), std=(0.3081,),
    ),
    "fashion_mnist": Spec(
        "clothing, 10 classes, 1x28x28, 60,000 + 10,000 (Xiao, Rasul & Vollgraf 2017)",
        (1, 28, 28), 10, "FashionMNIST", idx=_IDX, mean=(0.2860,), std=(0.3530,),
    ),
    "kmnist": Spec(
        "cursive Japanese characters, 10 classes, 1x28x28, 60,000 + 10,000 (Clanuwat et al. 2018)",
        (1, 28, 28), 10, "KMNIST", idx=_IDX, mean=(0.1918,), std=(0.3483,),
    ),
    "emnist": _emnist(
        "balanced", "digits and letters, balanced split, 47 classes, 1x28x28, 112,800 + 18,800 (Cohen et al. 2017)",
        47, mean=(0.1751,), std=(0.3332,),
    ),
    "emnist_letters": _emnist(
        "letters", "letters, upper and lower case merged, 26 classes, 1x28x28, 124,800 + 20,800 (Cohen et al. 2017)",
        26, first=1,
    ),
    "emnist_digits": _emnist(
        "digits", "handwritten digits, 10 classes, 1x28x28, 240,000 + 40,000 (Cohen et al. 2017)", 10
    ),
    "emnist_byclass": _emnist(
        "byclass", "digits and letters, 62 classes, 1x28x28, 697,932 + 116,323 (Cohen et al. 2017)", 62
    ),
    "qmnist": Spec(
        "handwritten digits, MNIST reconstructed, 10 classes, 1x28x28, 60,000 + 60,000 (Yadav & Bottou 2019)",
        (1, 28, 28), 10, "QMNIST", ({"what": "train"},), ({"what": "test"},), files=("QMNIST",),
    ),
    "usps": Spec(
        "handwritten digits of zip codes, 10 classes, 1x16x16, 7,291 + 2,007 (Hull 1994)",
        (1, 16, 16), 10, "USPS", files=("usps.bz2", "usps.t.bz2"),
    ),
    "semeion": Spec(
        "handwritten digits, 10 classes, 1x16x16, 1,593, a fifth for testing (Buscema 1998)",
        (1, 16, 16), 10, "SEMEION", **_WHOLE, files=("semeion.data",),
    ),
    "omniglot": Spec(
        "characters of 30 alphabets, 964 classes of 20 images, 1x28x28 resized, a fifth for testing (Lake et al. 2015)",
        (1, 28, 28), 964, "Omniglot", ({"background": True},), (), ("omniglot-py",), uniform=False,
    ),
    "fer2013": Spec(
        "facial expressions, 7 classes, 1x48x48, 28,709 + 7,178, manual download from Kaggle (Goodfellow et al. 2013)",
        (1, 48, 48), 7, "FER2013", **_split("train"), files=("fer2013",), fetched=False,
    ),
    "cifar10": Spec(
        "photographs, 10 classes, 3x32x32, 50,000 + 10,000 (Krizhevsky 2009)",
        (3, 32, 32), 10, "CIFAR10", files=("cifar-10-batches-py",), archive="cifar-10-python.tar.gz",
        mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": Spec(
        "photographs, 100 fine classes, 3x32x32, 50,000 + 10,000 (Krizhevsky 2009)",
        (3, 32, 32), 100, "CIFAR100", files=("cifar-100-python",), archive="cifar-100-python.tar.gz",
        mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762),
    ),
    "svhn": Spec(
        "house numbers, 10 classes, 3x32x32, 73,257 + 26,032 (Netzer et al. 2011)",
        (3, 32, 32), 10, "SVHN", **_split("train"), files=("train_32x32.mat", "test_32x32.mat"),
        mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970),
    ),
    "stl10": Spec(
        "photographs, 10 classes, 3x96x96, 5,000 + 8,000 (Coates, Lee & Ng 2011)",
        (3, 96, 96), 10, "STL10", **_split("train"), files=("stl10_binary",),
    ),
    "eurosat": Spec(
        "satellite images, 10 classes, 3x64x64, 27,000, a fifth for testing (Helber et al. 2019)",
        _RGB, 10, "EuroSAT", **_WHOLE, files=("eurosat",),
    ),
    "pcam": Spec(
        "patches of lymph nodes, 2 classes, 3x96x96, 294,912 + 32,768, needs h5py (Veeling et al. 2018)",
        (3, 96, 96), 2, "PCAM", **_split("train", "val"), files=("pcam",),
    ),
    "gtsrb": Spec(
        "traffic signs, 43 classes, 3x32x32 resized, 26,640 + 12,630 (Stallkamp et al. 2012)",
        (3, 32, 32), 43, "GTSRB", **_split("train"), files=("gtsrb",), uniform=False,
    ),
    "imagenette": Spec(
        "ten easy classes of ImageNet, 3x64x64 resized, 9,469 + 3,925 (Howard 2019)",
        _RGB, 10, "Imagenette", **_split("train", test="val", size="160px"), files=("imagenette2-160",), uniform=False,
    ),
    "flowers102": Spec(
        "flowers, 102 classes, 3x64x64 resized, 2,040 + 6,149 (Nilsback & Zisserman 2008)",
        _RGB, 102, "Flowers102", **_split("train", "val"), files=("flowers-102",), uniform=False,
    ),
    "food101": Spec(
        "dishes, 101 classes, 3x64x64 resized, 75,750 + 25,250 (Bossard, Guillaumin & Van Gool 2014)",
        _RGB, 101, "Food101", **_split("train"), files=("food-101",), uniform=False,
    ),
    "dtd": Spec(
        "textures, 47 classes, 3x64x64 resized, 3,760 + 1,880, first split (Cimpoi et al. 2014)",
        _RGB, 47, "DTD", **_split("train", "val"), files=("dtd",), uniform=False,
    ),
    "fgvc_aircraft": Spec(
        "aircraft, 100 variants, 3x64x64 resized, 6,667 + 3,333 (Maji et al. 2013)",
        _RGB, 100, "FGVCAircraft", **_split("trainval"), files=("fgvc-aircraft-2013b",), uniform=False,
    ),
    "oxford_iiit_pet": Spec(
        "cats and dogs, 37 breeds, 3x64x64 resized, 3,680 + 3,669 (Parkhi et al. 2012)",
        _RGB, 37, "OxfordIIITPet", **_split("trainval"), files=("oxford-iiit-pet",), uniform=False,
    ),
    "stanford_cars": Spec(
        "cars, 196 models, 3x64x64 resized, 8,144 + 8,041, manual download (Krause et al. 2013)",
        _RGB, 196, "StanfordCars", **_split("train"), files=("stanford_cars",), fetched=False, uniform=False,
    ),
    "caltech101": Spec(
        "objects, 101 classes, 3x64x64 resized, 8,677, a fifth for testing (Fei-Fei, Fergus & Perona 2004)",
        _RGB, 101, "Caltech101", **_WHOLE, files=("caltech101",), uniform=False,
    ),
    "caltech256": Spec(
        "objects, 257 classes, 3x64x64 resized, 30,607, a fifth for testing (Griffin, Holub & Perona 2007)",
        _RGB, 257, "Caltech256", **_WHOLE, files=("caltech256",), uniform=False,
    ),
    "sun397": Spec(
        "scenes, 397 classes, 3x64x64 resized, 108,754, a fifth for testing (Xiao et al. 2010)",
        _RGB, 397, "SUN397", **_WHOLE, files=("SUN397",), uniform=False,
    ),
    "country211": Spec(
        "photographs by country, 211 classes, 3x64x64 resized, 42,200 + 21,100 (Radford et al. 2021)",
        _RGB, 211, "Country211", **_split("train", "valid"), files=("country211",), uniform=False,
    ),
    "rendered_sst2": Spec(
        "film reviews rendered as images, 2 classes, 3x64x64 resized, 7,792 + 1,821 (Radford et al. 2021)",
        _RGB, 2, "RenderedSST2", **_split("train", "val"), files=("rendered-sst2",), uniform=False,
    ),
    "clevr": Spec(
        "rendered scenes, 3 to 10 objects, 8 classes, 3x64x64 resized, 70,000 + 15,000 (Johnson et al. 2017)",
        _RGB, 8, "CLEVRClassification", **_split("train", test="val"), files=("clevr",), first=3, uniform=False,
    ),
    "places365": Spec(
        "scenes, 365 classes, 3x64x64 resized, 1,803,460 + 36,500 (Zhou et al. 2017)",
        _RGB, 365, "Places365", **_split("train-standard", test="val", small=True),
        files=("data_256_standard", "val_256", "places365_train_standard.txt", "places365_val.txt"), uniform=False,
    ),
    "inaturalist": Spec(
        "species, 10,000 classes, 3x64x64 resized, 500,000 + 100,000 (Van Horn et al. 2021)",
        _RGB, 10_000, "INaturalist", ({"version": "2021_train_mini"},), ({"version": "2021_valid"},),
        ("2021_train_mini", "2021_valid"), uniform=False,
    ),
    "imagenet": Spec(
        "photographs, 1,000 classes, 3x64x64 resized, 1,281,167 + 50,000, manual download (Russakovsky et al. 2015)",
        _RGB, 1000, "ImageNet", **_split("train", test="val"), files=("train", "val"), fetched=False, uniform=False,
    ),
}  # fmt: skip
