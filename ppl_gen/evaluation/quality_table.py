"""The table of a `quality.json`: its rows, and its text."""

from ppl_gen.core.tables import Row, fixed, line
from ppl_gen.evaluation.table import title
from ppl_gen.experiment.run_directory import Json

QUALITY_UNITS = "± standard error; in brackets, as many other real images in the place of the samples"


def quality_rows(summary: Json) -> list[Row]:
    """The rows of a `quality.json`."""
    s = summary

    def score(label: str, key: str, digits: int) -> Row:
        ours, real = s[key], s["real_images"][key]
        mean, se, of_real, its_se = (fixed(each[name], digits) for each in (ours, real) for name in ("mean", "se"))
        return Row(label, mean, se, f"({of_real} ± {its_se})")

    classes, distance = s["classes"], s["nearest"]
    seen = ", ".join(f"{share:.1%}" for share in classes["share"])
    return [
        score("Fréchet distance", "frechet", 2),
        score("kernel distance", "kernel", 3),
        score("precision", "precision", 3),
        score("recall", "recall", 3),
        Row("classes covered", note=f"{classes['covered']} of {classes['of']}"),
        Row("their shares", note=f"{seen}; KL to the data's {classes['divergence']:.3f} nats"),
        Row(
            "nearest training image",
            note=f"median distance {distance['samples']:.2f}; of test images {distance['test']:.2f}",
        ),
        Row("classifier", note=f"right on {s['classifier']['accuracy']:.1%} of the test images"),
        Row("this took", note=f"{s['seconds']:.0f} s, and the classifier's training"),
    ]


def quality_images(summary: Json) -> str:
    """The images that a `quality.json` compares, as text."""
    what = {"draws": "draws x ~ p(x)", "means": "means E[x | z]"}[summary["images"]]
    against = f"binarization {summary['binarization']}" if summary["images"] == "draws" else "grey values"
    return f"{summary['num_images']} {what} against as many test images of {summary['data']}, {against}"


def quality_table(summary: Json) -> str:
    """The content of `quality.json` as text."""
    lines = [f"{title(summary)}: {quality_images(summary)}", QUALITY_UNITS]
    return "\n".join([*lines, *(line(row, 24, "{:>1}{:>8}{}") for row in quality_rows(summary))])
