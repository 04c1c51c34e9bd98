"""Compare methods on one class: what is still seen, what happened to the rest, and what each cost."""

from __future__ import annotations

import sys
from pathlib import Path

from semu_diffusion.pipelines.benchmark.config import BenchmarkConfig
from semu_diffusion.pipelines.benchmark.rows import read_rows
from semu_diffusion.pipelines.benchmark.run import run


def main(name: str = "cat", *methods: str, model: str = "ddpm-cifar10", images: int = 8, **settings: object) -> None:
    work = f"compared/{Path(model).name}"  # one folder a model: rows of others are not read back
    config = BenchmarkConfig(
        erase=(name,),
        model=model,
        methods=methods or ("closed-form", "copy"),
        images=images,
        work=work,
        output=f"{work}/results.md",
        **settings,  # type: ignore[arg-type]
    )
    run(config)
    (rows,) = Path(work).glob("*.jsonl")
    for row in read_rows(rows)[1:]:
        before, after = row["evaluation"]["before"], row["evaluation"]["after"]
        drift = row["evaluation"]["side_effects"]["paired"]["mse"]
        print(
            f"{row['method']:<12} seen {before['forget_accuracy']:.2f} -> {after['forget_accuracy']:.2f}, drift {drift:.4f}, "
            f"revival {after['revival']}, {sum(row['seconds'].values()):.1f} s"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
