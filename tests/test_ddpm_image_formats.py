"""Images in the forms that people hold them in, to samples and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hub.ddpm_image_formats import decode_images, encode_images, encode_mask

SIZE = (4, 6)


def pixels(channels: int, count: int = 2) -> torch.Tensor:
    """Images that hold many of the 256 values, among them 0 and 255."""
    values = torch.arange(count * channels * 24) * 37 % 256
    values[0], values[1] = 0, 255
    return values.reshape(count, channels, *SIZE).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_what_is_given_out_can_be_given_back(kind, channels):
    original = pixels(channels)
    sample = original.double() * 2 / 255 - 1
    given = decode_images(sample.float(), kind)
    back = encode_images("image", given, channels, SIZE)
    assert back.dtype == torch.float32
    # Roundings of x to x/2 + ½ and back, each of at most 2⁻²⁴ in numbers below 1.
    torch.testing.assert_close(back.double(), sample, rtol=0, atol=4 * 2**-24)
    assert np.array_equal(
        np.stack([np.asarray(image).reshape(*SIZE, channels) for image in decode_images(back, "pil")]),
        original.permute(0, 2, 3, 1).numpy(),
    )


def test_sample_is_given_out_as_it_is():
    sample = torch.randn(2, 1, *SIZE)
    assert decode_images(sample, "sample") is sample


@pytest.mark.parametrize(
    "images",
    [
        pixels(1).movedim(1, -1).numpy(),
        list(pixels(1).movedim(1, -1).numpy()),
        [image[0].numpy() for image in pixels(1)],
        pixels(1),
        list(pixels(1)),
        (pixels(1).to(torch.int32) * 257).to(torch.uint16),
        pixels(1).double() / 255,
        (pixels(1).float() / 255).movedim(1, -1).numpy(),
        pixels(1).movedim(1, -1).numpy()[:, ::-1].copy()[:, ::-1],
        (pixels(1).movedim(1, -1).numpy().astype(">u2") * 257),
    ],
    ids=[
        "array",
        "arrays",
        "flat arrays",
        "tensor",
        "tensors",
        "uint16",
        "float64",
        "float array",
        "turned",
        "big-endian",
    ],
)
def test_one_image_in_many_forms(images):
    wanted = pixels(1).double() * 2 / 255 - 1
    # float32 rounding of a value and of its double.
    torch.testing.assert_close(encode_images("image", images, 1, SIZE).double(), wanted, rtol=0, atol=2**-23)


@pytest.mark.parametrize(
    ("images", "channels", "message"),
    [
        (Image.new("RGB", (6, 4)), 1, r"`image` has the mode 'RGB'; .* needs 'L': use image.convert\('L'\)"),
        (Image.new("P", (6, 4)), 3, r"`image` has the mode 'P'; .* needs 'RGB'"),
        (Image.new("I;16", (6, 4)), 1, "`image` has the mode 'I;16'"),
        (Image.new("L", (6, 4)), 2, "`image` has the mode 'L'; .*pass an array"),
        ([Image.new("L", (6, 4)), Image.new("L", (5, 4))], 1, r"`image\[1\]` is 5 wide and 4 high; .* are 6×4"),
        (np.zeros((4, 6, 3), np.uint8), 1, "`image` has 3 channels"),
        (np.zeros((4, 6)), 3, r"`image` has shape \(4, 6\)"),
        (torch.zeros(0, 1, 4, 6), 1, "`image` has 1 channels in 0 images"),
        (torch.zeros(1, 1, 6, 4), 1, "`image` is 4 wide and 6 high"),
        (torch.full((1, 1, 4, 6), -0.5), 1, r"`image` has values from -0.5 to -0.5; .* 0…1. Of x in \[−1, 1\] take"),
        (torch.full((1, 1, 4, 6), 200.0), 1, "`image` has values from 200 to 200"),
        (torch.full((1, 1, 4, 6), float("nan")), 1, "`image` has values from nan"),
        (torch.zeros(1, 1, 4, 6, dtype=torch.int64), 1, "`image` has dtype torch.int64"),
        (np.full((4, 6), "a"), 1, "`image` has dtype <U1; it must hold numbers"),
        ("photo.png", 1, "`image` is a str; it must be a PIL image"),
        (None, 1, "`image` is a NoneType"),
        ([], 1, "`image` is a list"),
    ],
)
def test_what_is_no_image_of_the_model(images, channels, message):
    with pytest.raises(ValueError, match=message):
        encode_images("image", images, channels, SIZE)


class TestMask:
    WHITE = torch.zeros(*SIZE, dtype=torch.bool)
    WHITE[1, 2] = True

    @pytest.mark.parametrize(
        "mask",
        [
            WHITE,
            WHITE.numpy(),
            Image.fromarray(WHITE.numpy().astype(np.uint8) * 255),
            Image.fromarray(WHITE.numpy().astype(np.uint8) * 255).convert("1"),
            WHITE.float() * 0.6,
            WHITE[None, None],
            WHITE.to(torch.uint8)[None] * 128,
            WHITE.to(torch.uint8),
            (WHITE.to(torch.int32) * 65535).to(torch.uint16),
            WHITE.numpy()[:, ::-1][:, ::-1],
        ],
        ids=["tensor", "array", "PIL", "PIL of bits", "grey", "(1, 1, H, W)", "uint8", "0 and 1", "uint16", "turned"],
    )
    def test_one_mask_in_many_forms(self, mask):
        assert torch.equal(encode_mask(mask, 3, SIZE), self.WHITE[None, None])

    def test_one_for_each_image(self):
        masks = torch.stack([self.WHITE, ~self.WHITE])
        assert torch.equal(encode_mask(masks, 2, SIZE), masks[:, None])
        assert torch.equal(encode_mask(list(masks), 2, SIZE), masks[:, None])

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (torch.zeros(6, 4), "`mask` is 4 wide and 6 high; the model's images are 6×4"),
            (torch.zeros(3, 4, 6), r"`mask` has shape \(3, 4, 6\); .* for each of 2 images"),
            (torch.zeros(2, 3, 4, 6), r"`mask` has shape \(2, 3, 4, 6\)"),
            (torch.zeros(4), r"`mask` has shape \(4,\)"),
            (torch.full(SIZE, 2.0), "`mask` has values from 2 to 2"),
            ("mask.png", "`mask` is a str"),
        ],
    )
    def test_what_is_no_mask(self, mask, message):
        with pytest.raises(ValueError, match=message):
            encode_mask(mask, 2, SIZE)
