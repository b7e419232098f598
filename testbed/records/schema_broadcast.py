"""The tables of a semantic broadcast: schemes, frames and users' images. See :mod:`testbed.records.schema`."""

from __future__ import annotations

from testbed.records.columns import Table, count, flag, number, text

__all__ = ["BROADCAST_TABLES"]

_TRIAL = text("trial", "the trial: t001 and so on; its policy is a scheme's name")
_FRAME = count("frame", "the frame's number in its trial, from 0: those of one model after those of another")

BROADCAST_TABLES = (
    Table(
        "schemes",
        "one scheme of a broadcast campaign, and one of the models that play it",
        (
            text("scheme", "the scheme's name: the `policy` of its trials"),
            text(
                "kind",
                "learned, digital (a codec at capacity) or practical (a codec, a real code and modulation)",
            ),
            text(
                "plays",
                "how the users share the channel: fusion, joint_division, time_division or superposition",
            ),
            text("codec", "jpeg2000, webp or avif; null where a network encodes", nullable=True),
            text(
                "ablates", "the scheme that this is without something; null where it is none's", nullable=True
            ),
            text("model", "the model; null where a codec encodes", nullable=True),
            count("training_seed", "what its training's random choices followed from", nullable=True),
        ),
    ),
    Table(
        "frames",
        "one block of a broadcast channel: a pair of images, one for each user, sent together",
        (
            _TRIAL,
            _FRAME,
            text("set", "the set of images"),
            text("pair", "the pair's name in its set: the images, that of user 1 first"),
            text("model", "the model that made the frame; null where a codec did", nullable=True),
            number("bandwidth_ratio", "complex symbols for each value of an image", "symbols"),
            number(
                "share", "the part that user 1 has: of the features, the symbols or the power, from 0 to 1"
            ),
            count("symbols", "complex symbols that were sent", "symbols"),
            count("side_bits", "what the receivers are told beside them", "bits"),
            count(
                "bytes", "what crossed the network, all copies; null without a rack", "bytes", nullable=True
            ),
            count(
                "copies",
                "how often the frame was sent: once to all, or once to each user; null without a rack",
                nullable=True,
            ),
            number("encode_ms", "the transmitter's work; null without a rack", nullable=True),
            number("t_send_s", "when the first byte was sent; null without a rack", nullable=True),
            number("t_done_s", "when the last user's answer was there; null without a rack", nullable=True),
        ),
    ),
    Table(
        "images",
        "one user's image of one frame, as it was decoded",
        (
            _TRIAL,
            _FRAME,
            count("user", "the user, from 1: the stronger one"),
            text("device", "the device that decoded it; null without a rack", nullable=True),
            text("image", "the image's name in its set"),
            number("snr_db", "the mean SNR that was asked for", "dB"),
            number("gain_db", "the power gain of the fading in this frame; 0 without fading", "dB"),
            number("believed_db", "the same as transmitter and receivers believed it to be", "dB"),
            number(
                "measured_snr_db",
                "the SNR of the symbols as they were received; null where no symbols were",
                "dB",
                nullable=True,
            ),
            count(
                "file_bits",
                "the bits of the file that was sent to the user; 0 where none was small enough, null where a network "
                "encodes",
                "bits",
                nullable=True,
            ),
            number("psnr_db", "peak signal-to-noise ratio of the image over all 8-bit values", "dB"),
            number("ssim", "structural similarity, 1 for equal images"),
            number(
                "ms_ssim", "the same over several scales; null for images too small for it", nullable=True
            ),
            flag("received", "whether anything could be decoded; where not, the image is a grey one"),
            number(
                "air_ms",
                "from the first byte sent to the last one received; null without a rack",
                nullable=True,
            ),
            number("decode_ms", "the receiver's work; null without a rack", nullable=True),
            text(
                "noise_seed", "what the frame's noise and gain followed from: equal ones met the same channel"
            ),
            text("digest", "the first digits of the sha256 of the image's 8-bit values"),
            flag(
                "on_paper",
                "whether it was computed by the controller from capacity or a code, and sent nowhere",
            ),
        ),
    ),
)
