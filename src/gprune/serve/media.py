"""How the server of `gprune serve` comes by pictures: from public addresses, in the formats of `gprune.images`, or not.

What a client names is fetched by the server, which reaches more than the client does: itself, and its neighbours.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from ipaddress import ip_address
from typing import Any

import aiohttp
from PIL import UnidentifiedImageError

from ..errors import BadValue, GpruneError
from ..images import FORMATS, read_rgb
from .host import MEDIA
from .settings import CONNECTOR

with MEDIA.checked():
    from vllm import envs
    from vllm.connections import HTTPConnection
    from vllm.exceptions import VLLMClientError, VLLMValidationError
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
    from vllm.multimodal.media.base import MediaWithBytes
    from vllm.multimodal.media.image import ImageMediaIO

AddressInfo = tuple[Any, Any, int, str, tuple[Any, ...]]
"""As `socket.getaddrinfo` gives it: family, kind, protocol, name, and where to connect to."""


class UnreadableMedia(GpruneError, VLLMValidationError):
    """What a request names or holds cannot be fetched or read; vLLM answers with status 400."""


class NotPublic(GpruneError, ValueError):
    """A connection would go to an address that is not public."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet, by the registries of IANA.

    Not those of this machine, of private networks, links, groups and tests, nor IPv6 ones that an IPv4 one hides in.
    """
    ip = ip_address(address)
    hidden = ip.version == 6 and (ip.is_site_local or ip.sixtofour is not None)
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or hidden)


def public_socket(info: AddressInfo) -> socket.socket:
    """A socket for a connection to an address, which was found by name or is one.

    It is judged here, after every name and redirect, so that a name cannot mean another address a moment later.

    Raises:
        NotPublic: the address is not public.
    """
    family, kind, protocol, _, target = info
    if not is_public(target[0]):
        raise NotPublic(f"{target[0]} is not a public address")
    return socket.socket(family, kind, protocol)


class PublicConnection(HTTPConnection):
    """Connects to public addresses, and to no proxy, which would find the addresses by itself."""

    _async_client: aiohttp.ClientSession | None

    async def get_async_client(self) -> aiohttp.ClientSession:
        """The client of vLLM's server, whose connections are judged."""
        if self._async_client is None:
            # One address after the other: only so does aiohttp hand on an error that is no failure to connect.
            connector = aiohttp.TCPConnector(socket_factory=public_socket, happy_eyeballs_delay=None)
            self._async_client = aiohttp.ClientSession(connector=connector)
        return self._async_client

    def get_sync_client(self) -> Any:
        """Refused: only the server fetches."""
        raise BadValue(
            "only vLLM's server fetches by public addresses; elsewhere hand over pictures, or set "
            "VLLM_MEDIA_CONNECTOR=http, which fetches from any address"
        )


_connection = PublicConnection()


class PictureIO(ImageMediaIO):
    """Reads a picture as all of gprune does.

    Args:
        media_io: vLLM's own, for a part of a request.
    """

    def __init__(self, media_io: ImageMediaIO) -> None:
        super().__init__(media_io.image_mode, **media_io.kwargs)
        # From vLLM 0.33 on: what the media of a request may take together (`VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES`).
        self.decoded_budget = getattr(media_io, "decoded_budget", None)

    def load_bytes(self, data: bytes) -> Any:
        """A picture of the bytes of a file, upright RGB."""
        if self.image_mode != "RGB" or self.kwargs:
            raise BadValue("media_io_kwargs has options for images, which are always read as RGB over white")
        picture = read_rgb(BytesIO(data), envs.VLLM_MAX_IMAGE_PIXELS)
        if self.decoded_budget is not None:
            self.decoded_budget.charge(picture.width * picture.height * COUNTED)
        return MediaWithBytes(picture, data)


@MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)
class PublicConnector(MediaConnector):
    """vLLM's own, but for where it connects to, how pictures are read, and what it says of those that cannot be."""

    def __init__(self, media_io_kwargs: Any = None, **options: Any) -> None:
        super().__init__(media_io_kwargs, _connection, **options)

    async def load_from_url_async(self, url: str, media_io: Any, **options: Any) -> Any:
        """What is at an address, pictures by `PictureIO`."""
        if isinstance(media_io, ImageMediaIO):
            media_io = PictureIO(media_io)
        with _refusing(url):
            return await super().load_from_url_async(url, media_io, **options)


@contextmanager
def _refusing(url: str) -> Iterator[None]:
    """Turn whatever goes wrong into one error; of an address that does not answer, it does not tell why."""
    try:
        yield
    except VLLMValidationError:
        raise
    except Exception as error:  # a damaged file can make a decoder raise almost anything
        cause = error.__cause__ if isinstance(error, VLLMClientError) and error.__cause__ else error
        if isinstance(cause, aiohttp.ClientResponseError):
            reason = f"its server answers with status {cause.status}"
        elif isinstance(cause, (NotPublic, aiohttp.ClientError, TimeoutError)):
            reason = "no public address answers there"
        elif isinstance(cause, UnidentifiedImageError):
            reason = "it is no picture"
        else:
            reason = str(cause) or type(cause).__name__
        raise UnreadableMedia(
            f"{url[:QUOTED]} cannot be read ({reason}); accepted are data: URLs in base64, and http: and https: URLs "
            f"of public addresses, of pictures in the formats {', '.join(FORMATS)}"
        ) from error


COUNTED = 4
"""Bytes that vLLM counts for a pixel."""

QUOTED = 80
"""Characters of a URL in an error; a data: URL holds a whole picture."""
