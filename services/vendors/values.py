"""What stands for "there is none", for all vendors: an empty side of the book, an id of 0. Pure."""

from tickbus.units import canonical, canonical_size, is_plain, is_plain_size

NO_SIDE = (None, None)


def book_side(price: str | None, size: str | None) -> tuple[str | None, str | None]:
    """Return best price and size of one side of the book, as the vendor wrote them, in canonical form.

    Both are None if that side is empty: no price ('' or None), or a price of 0 without a size other than 0.
    The size alone is None if the vendor gives none. ValueError if one is not a number.
    """
    if not price:
        if price not in ("", None):
            raise ValueError(f"expected a number or text, got {price!r}")
        return NO_SIDE
    if not is_plain(price):
        price = canonical(price)
    if not size:
        if size not in ("", None):
            raise ValueError(f"expected a number or text, got {size!r}")
        size = None
    elif not is_plain_size(size):
        size = canonical_size(size)
    if price[0] == "0" and is_zero(price) and (size is None or is_zero(size)):
        return NO_SIDE
    return price, size


def is_zero(number: str) -> bool:
    """Return whether a canonical number is zero."""
    return not number.strip("0.")


def trade_id(text: str) -> str | None:
    """Return a vendor's trade id; None for '' and '0', by which vendors mean that there is none."""
    return None if text in ("", "0") else text
