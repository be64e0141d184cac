"""The verb ``map``: clusters of a catalogue and of its users."""

from pathlib import Path
from typing import Annotated

import typer

from recserve import console


def map_catalogue(
    run: Annotated[Path, typer.Argument(help="A run folder of a model with item vectors.")],
    clusters: Annotated[int, typer.Option(help="Clusters of items, and of users.")] = 16,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for items.parquet (id, cluster, x, y; for --items) and users.parquet."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the items: FILE.png, .svg or .pdf.")] = None,
    seed: Annotated[int, typer.Option(help="Of k-means.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Cluster items and users by what a model learned of them; say what each cluster is."""
    from recserve.training.catalogue_map import catalogue_map, describe, draw, write_tables
    from recserve.training.comparison import check_plot
    from recserve.training.run import open_run

    if plot:
        check_plot(plot)
    opened = open_run(run)
    found = catalogue_map(opened, clusters, seed=seed)
    described = describe(opened, found)
    title = f"{opened.dataset.name}, {opened.config.model}: {opened.dataset.n_items:,} items"
    if out:
        write_tables(opened, found, out)
        console.note(
            f"clusters of {opened.dataset.n_items:,} items and {opened.dataset.n_users:,} users in {out}"
        )
    if plot:
        draw(found, described, title, plot)
    if json:
        silhouettes = {"items": found.item_silhouette, "users": found.user_silhouette}
        console.print_json({"run": str(run), "silhouette": silhouettes, "clusters": described})
        return
    console.print_table(
        f"{title} (silhouette {found.item_silhouette:.3f}, of users {found.user_silhouette:.3f})",
        ["cluster", "items", "share", "words", "most popular"],
        [
            [
                f"c{one['cluster']}",
                one["n_items"],
                f"{one['share']:.3f}",
                ", ".join(one["words"]),
                "; ".join(str(name) for name in one["items"][:3]),
            ]
            for one in described
        ],
    )


# The verb's name is that of a function of Python.
map_catalogue.__name__ = "map"
