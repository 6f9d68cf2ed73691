"""The command ``kdcache`` and what it calls."""

from __future__ import annotations

import click

from kdcache import __version__
from kdcache.cli import ablate, cache, catalog, cost, evaluate, exchange, extract, fit, predict, sources, submit, train
from kdcache.cli.common import Group, verbosity
from kdcache.cli.standard_streams import open_standard_streams
from kdcache.log import show_log
from kdcache.runtime import share_processor

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="kdcache")
@click.option(
    "--import",
    "modules",
    multiple=True,
    metavar="MODULE",
    envvar="KDCACHE_IMPORT",
    help="Import a Python module first, which may register networks; repeatable.",
)
def main(modules: tuple[str, ...]) -> None:
    """Extract frozen video features once, then train distillation heads on them as often as you like.

    \b
    Example:
      kdcache demo
      kdcache extract --manifest clips.csv --root videos/ --layer mixed4a
      kdcache train anticipation --shards out/
    """
    open_standard_streams()
    show_log()
    share_processor()
    if modules:
        from kdcache.backbones.custom import import_modules

        import_modules(modules)


main.params += verbosity()
for command in (
    extract.extract,
    extract.make_manifest,
    cache.inspect,
    cache.verify,
    cache.reindex,
    cache.copy,
    cache.show,
    sources.check,
    sources.idt,
    sources.list_datasets,
    catalog.list_methods,
    catalog.list_backbones,
    sources.weights,
    exchange.import_group,
    exchange.export_group,
    fit.fit,
    train.train,
    evaluate.evaluate,
    predict.predict,
    submit.submit,
    cost.cost,
    ablate.ablate,
    train.demo,
):
    main.add_command(command)
