"""Public recordings by name: where they lie, whether they are whole, and as tables.

A card ships with the package; the data do not. They are looked for below the folder in the
environment variable STIMOPT_DATA, then in the cache that `fetch` fills (STIMOPT_CACHE, or
the user's cache folder). A file that differs from its card is refused by checksum: numbers
printed from it would not be those of the card.
"""

import hashlib
import os
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import DataError
from .trial_card import Provenance, TrialCard, parse_card, read_yaml, table_file
from .trial_table import TrialTable, build_table, read_trial_table


class DatasetCard(BaseModel):
    """What a name stands for.

    Attributes:
        name: As written on the command line.
        title: One line about it.
        provenance: Source, licence, citation, checksums and traps.
        table: How to read it as a trial table; None for recordings of signals.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    title: str
    provenance: Provenance
    table: TrialCard | None = None


def dataset_names() -> tuple[str, ...]:
    """Names of the cards in the package, sorted."""
    cards = files(__package__).joinpath("cards").iterdir()
    return tuple(sorted(card.name.removesuffix(".yaml") for card in cards if card.name.endswith(".yaml")))


def find_dataset(name: str) -> DatasetCard:
    """The card of a data set.

    Raises:
        DataError: If there is none, with the nearest name.
    """
    known = dataset_names()
    if name not in known:
        close = get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}."
        raise DataError(
            f"data set {name!r} is not known; {hint} A table of your own goes by the path of its dataset.yaml."
        )
    content = read_yaml(Path(str(files(__package__).joinpath("cards", f"{name}.yaml"))))
    table = parse_card(content, f"card {name}") if "parameters" in content else None
    try:
        return DatasetCard(name=name, title=content["title"], provenance=content["provenance"], table=table)
    except (KeyError, ValidationError) as error:
        raise DataError(f"card {name} has no title or provenance, or a wrong one: {error}") from error


def locate(name: str) -> Path:
    """The folder of a data set, every file of its card there and whole.

    Raises:
        DataError: If it is nowhere, a file is missing, or a file differs from the card.
    """
    card = find_dataset(name)
    folder = card.provenance.folder
    root = os.environ.get("STIMOPT_DATA", "")
    places = ([Path(root) / folder] if root else []) + [_cache() / folder]
    for place in places:
        if place.is_dir():
            _require_whole(card, place)
            return place
    raise DataError(
        f"data set {name!r} is not on this machine; looked in {', '.join(map(str, places))}. Set STIMOPT_DATA to the "
        f"folder that holds {folder}/, or fetch it; it was made from {card.provenance.source}."
    )


def fetch(card: DatasetCard, base_url: str | None = None) -> Path:
    """Download the files of a card into the cache, each checked; those already there are kept.

    Args:
        card: Of the data set.
        base_url: Where its folder's files are served; None takes the card's.

    Returns:
        The folder.

    Raises:
        DataError: If nobody serves it, the server cannot be reached or lacks a file, or a checksum differs.
    """
    import pooch  # here, because importing it takes longer than most commands

    address = base_url or card.provenance.download
    if address is None:
        raise DataError(
            f"nobody serves the prepared files of {card.name!r}; make them from {card.provenance.source} and set "
            "STIMOPT_DATA, or give a base_url."
        )
    folder = _cache() / card.provenance.folder
    for name, checksum in card.provenance.sha256.items():
        target = folder / name
        url = f"{address.rstrip('/')}/{name}"
        try:
            pooch.retrieve(url, f"sha256:{checksum}", fname=target.name, path=target.parent)
        except ValueError as error:  # pooch's word for a wrong checksum
            raise DataError(
                f"{url} is not the file of card {card.name!r}: its sha256 differs; nothing was kept."
            ) from error
        except Exception as error:  # requests has a family of its own
            reason = str(error).partition("\n")[0]
            raise DataError(f"{url} could not be fetched ({reason}); check the address and the network.") from error
    return folder


def load_table(name_or_path: str | Path) -> TrialTable:
    """A trial table: of a data set by name, or of any `dataset.yaml` (or its folder) by path.

    Raises:
        DataError: If the name is unknown, the data are not at hand, or the data set is no table.
    """
    text = str(name_or_path)
    path = Path(text)
    if text not in dataset_names() and (path.exists() or path.suffix in (".yaml", ".yml") or len(path.parts) > 1):
        return read_trial_table(path)
    card = find_dataset(text)
    if card.table is None:
        raise DataError(f"data set {text!r} holds signals, not a trial table; read it with stimopt.bids.")
    return build_table(card.table, table_file(card.table, locate(text)))


def _cache() -> Path:
    own = os.environ.get("STIMOPT_CACHE", "")
    if own:
        return Path(own)
    import pooch  # here, because importing it takes longer than most commands

    return Path(pooch.os_cache("stimopt"))


def _require_whole(card: DatasetCard, folder: Path) -> None:
    for name, checksum in card.provenance.sha256.items():
        file = folder / name
        if not file.is_file():
            raise DataError(f"{file} is missing; {card.name!r} needs it. Copy or fetch the data set again.")
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != checksum:
            raise DataError(
                f"{file} differs from the card of {card.name!r} (sha256 {found[:12]}, card {checksum[:12]}): it is "
                "damaged or another version. Fetch it again, or put a dataset.yaml beside it and name that path."
            )
