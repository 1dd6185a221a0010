"""Whether two versions draw the same masks: how many pixels differ between two results of ``amsam segment``.

    amsam segment DATA/isic2018/test/images -o BEFORE --format png      # with one version
    amsam segment DATA/isic2018/test/images -o AFTER --format png       # with another
    python -m benchmarks.same_masks BEFORE AFTER

Where sizes differ, all pixels do.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image


def differing_pixels(before: Path, after: Path) -> int:
    """Of two mask files; all of the larger one where their sizes differ."""
    one, other = (np.asarray(Image.open(path)) for path in (before, after))
    return int(np.count_nonzero(one != other)) if one.shape == other.shape else max(one.size, other.size)


@click.command()
@click.argument("before", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("after", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(before: Path, after: Path) -> None:
    """Compare the masks in two output folders of ``amsam segment``, BEFORE and AFTER."""
    masks = [{path.relative_to(folder) for path in folder.glob("masks/**/*.png")} for folder in (before, after)]
    for missing, folder in ((masks[0] - masks[1], after), (masks[1] - masks[0], before)):
        if missing:
            raise click.ClickException(
                f"{folder} lacks {len(missing)} masks, such as {min(missing)}; segment them first"
            )
    if not masks[0]:
        raise click.ClickException(f"{before} has no masks; give folders that `amsam segment --format png` wrote")
    counts = {name: differing_pixels(before / name, after / name) for name in sorted(masks[0])}
    different = {name: count for name, count in counts.items() if count}
    for name, count in sorted(different.items(), key=lambda item: -item[1])[:10]:
        click.echo(f"{name}: {count:,} pixels")
    click.echo(f"{len(counts)} masks, {len(different)} of them different; differing pixels: {sum(counts.values()):,}")


if __name__ == "__main__":
    main()
