"""Letters that the text recogniser of PP-OCRv6 does not know -> what its last layer needs to know them.

    PYTHONPATH=shared:services:models python -m training.ocr_letters FONT [FONT ...]

Of all Spanish signs it lacks one: the inverted exclamation mark, which it reads as `i`, `!` or nothing. What
it sees is enough to tell them apart, so that nothing but one column of its last layer is trained (120 weights
and a bias, logistic regression beside the scores of the other characters), on lines that are drawn with the
fonts named and worn like scans. Every fifth font is only tested with. Prints the constant of
`ocr_worker.domain.letters`.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ocr_worker.domain import models
from ocr_worker.domain.alphabet import Alphabet
from ocr_worker.domain.recognition import HEIGHT

LETTER = "¡"
LINES_PER_FONT = 20

# Of the fit.
RIDGE = 1.0
ROUNDS = 4
NEWTON_STEPS = 15
SMALLEST = 1e-6
LARGEST = 500.0

# Of a line's picture, to a step.
PIXELS = 8

# How many steps beside its place the letter may be said.
REACH = 2

OPENINGS = (
    "Hola!",
    "Atención!",
    "Feliz cumpleaños, Íñigo!",
    "Qué sorpresa!",
    "Gracias por su visita!",
    "Vuelva pronto!",
    "Oferta!",
    "GRACIAS!",
    "BIENVENIDOS!",
    "Última hora!",
    "No te lo pierdas!",
    "Ánimo!",
    "Viva España!",
    "Cuidado!",
    "Ya está aquí!",
    "Basta!",
    "Llámanos hoy!",
    "Descubre más!",
    "Jamás!",
    "Ole!",
    "Increíble!",
    "Por fin!",
    "Socorro!",
    "Es gratis!",
    "Buen viaje!",
    "Eso es!",
    "Ñandú!",
    "Rebajas!",
    "Última oportunidad!",
    "Mira esto!",
    "Tú puedes!",
    "Urgente!",
    "Quédate!",
    "Zas!",
    "Fuego!",
    "Kilo a 2 €!",
)
PLAIN = (
    "El pingüino comió 1,50 € de piñones en la calle Íbiza.",
    "¿Cuánto cuesta el billete de ida y vuelta?",
    "i) primero; ii) segundo; iii) tercero",
    "Importe total: 113,11 €",
    "iglesia, imagen, isla e idea",
    "La lluvia! dijo",
    "Juan Jiménez Iglesias, jefe de jardinería",
    "FACTURA N.º 2024/0117",
    "TOTAL 11.11 IVA 21 %",
    "lili illi ijij jiji",
    "Invoice no. 1181, issued in Illinois",
    "It is illegal to fill in this line!",
    "jail, jij, ¿jamás?",
    "1! 2! 3! 4!",
    "Tel. 91 111 11 11",
    "Fax 91 111 11 12",
    "¿Sí? ¿No? ¿Quién lo dijo?",
    "If it fits, it ships!",
    "Wi-Fi incluido!",
)


def main(fonts: list[str]) -> None:
    random = np.random.default_rng(6)
    session = recogniser()
    seen: dict[bool, list[Line]] = {False: [], True: []}
    for number, font in enumerate(sorted(fonts)):
        for picture, wanted in lines(font, random):
            steps, scores = session.run(None, {"x": fed(picture)})
            seen[number % 5 == 4].append(Line(steps[0], scores[0], marked(scores[0], wanted)))
    weights = fitted(seen[False])
    report("fonts trained with", seen[False], weights)
    report("other fonts", seen[True], weights)
    print(base64.b85encode(weights.astype("<f4").tobytes()).decode())


class Line(NamedTuple):
    """What the recogniser makes of a line.

    steps: what goes into its last layer, float32 [steps, 120]. scores: what comes out, before they are made
    probabilities, float32 [steps, characters]. wanted: at which steps the letter ought to be said.
    """

    steps: NDArray[np.float32]
    scores: NDArray[np.float32]
    wanted: NDArray[np.bool_]


def fitted(lines: list[Line]) -> NDArray[np.float64]:
    """The letter's weights and its bias.

    At which step of its place the letter is told best is not known before: each round takes those steps at
    which the weights of the round before say it most, and leaves those beside them out.
    """
    places = [list(np.flatnonzero(line.wanted)) for line in lines]
    for _ in range(ROUNDS):
        weights = regression(lines, places)
        places = [
            [at + int(np.argmax(margins[at])) - REACH for at in np.flatnonzero(line.wanted)]
            for line in lines
            for margins in (around(line.steps @ weights[:-1] - total(line.scores)),)
        ]
    return weights


def around(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each value with those beside it, float64 [steps, 2 * REACH + 1]."""
    filled = np.pad(values, REACH, constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(filled, 2 * REACH + 1)


def regression(lines: list[Line], places: list[list[int]]) -> NDArray[np.float64]:
    """Newton's method on the logarithm of the likelihood, its steps halved while they lead up."""
    kept, said_there = [], []
    for line, at in zip(lines, places, strict=True):
        keep = np.convolve(line.wanted, np.ones(2 * REACH + 1), "same") == 0
        keep[at] = True
        wanted = np.zeros(len(keep), np.bool_)
        wanted[at] = True
        kept.append((line.steps[keep], total(line.scores)[keep]))
        said_there.append(wanted[keep])
    steps = np.concatenate([each for each, _ in kept]).astype(np.float64)
    others = np.concatenate([each for _, each in kept])
    wanted = np.concatenate(said_there)
    middle, spread = steps.mean(axis=0), steps.std(axis=0)
    known = np.hstack(((steps - middle) / spread, np.ones((len(steps), 1))))
    weights = np.zeros(known.shape[1])
    loss = np.inf
    for _ in range(NEWTON_STEPS):
        said = 1 / (1 + np.exp(np.clip(others - known @ weights, -LARGEST, LARGEST)))
        slope = known.T @ (said - wanted) + RIDGE * weights
        bend = (known.T * (said * (1 - said))) @ known + RIDGE * np.eye(len(weights))
        step = np.linalg.solve(bend, slope)
        while (lower := cost(known, others, wanted, weights - step)) > loss and np.abs(step).max() > SMALLEST:
            step /= 2
        weights, loss = weights - step, lower
    scaled = weights[:-1] / spread
    return np.append(scaled, weights[-1] - middle @ scaled)


def cost(
    known: NDArray[np.float64],
    others: NDArray[np.float64],
    wanted: NDArray[np.bool_],
    weights: NDArray[np.float64],
) -> float:
    """What is made as small as can be: the surprise at what ought to be said, and large weights."""
    margins = np.where(wanted, 1, -1) * (known @ weights - others)
    return float(np.logaddexp(0, -margins).sum() + RIDGE / 2 * (weights @ weights))


def total(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """What the letter's score competes with at each step: the logarithm of the sum of all powers of e."""
    most = scores.max(axis=1, keepdims=True)
    return (most[:, 0] + np.log(np.exp(scores - most).sum(axis=1))).astype(np.float64)


def report(name: str, lines: list[Line], weights: NDArray[np.float64]) -> None:
    """Prints how many letters are said in the lines, and how many lines say one that is not there."""
    letters = found = false = 0
    for line in lines:
        said = line.steps @ weights[:-1] + weights[-1] > line.scores.max(axis=1)
        letters += int(line.wanted.sum())
        near = around(said.astype(np.float64)).max(axis=1) > 0
        found += int(near[line.wanted].sum())
        false += bool((said & (np.convolve(line.wanted, np.ones(2 * REACH + 1), "same") == 0)).any())
    print(f"{name}: {found} of {letters} said, {false} of {len(lines)} lines with one too many")


def recogniser() -> onnxruntime.InferenceSession:
    """A session that gives what goes into the last layer, and what comes out of it."""
    model = models.loaded(models.bundled("PP-OCRv6_rec_small.onnx"))
    models.only(model, Alphabet("es+en").__contains__)
    names = (models.last_layer(model).input[0], model.graph.node[-1].input[0])
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    return models.session_of(model, 1)


def lines(
    font: str, random: np.random.Generator
) -> Iterator[tuple[NDArray[np.uint8], list[tuple[float, float]]]]:
    """Pictures of lines of one height, and from where to where the letter stands in them, in pixels."""
    for number in range(LINES_PER_FONT):
        if number % 3 == 2:
            text = str(random.choice(PLAIN))
        else:
            text = LETTER + str(random.choice(OPENINGS))
            if random.random() < 0.4:
                text = str(random.choice(("", "Hola. ", "OFERTA ", "(", "«", "- "))) + text
            if random.random() < 0.3:
                text += " " + LETTER + str(random.choice(OPENINGS))
        yield worn(*drawn(text, ImageFont.truetype(font, int(random.integers(18, 52))), random), random)


def drawn(
    text: str, font: ImageFont.FreeTypeFont, random: np.random.Generator
) -> tuple[NDArray[np.uint8], list[tuple[float, float]]]:
    _, top, right, bottom = font.getbbox(text)
    above, below = (bottom - top) * random.uniform(0.05, 0.35, 2)
    before = (bottom - top) * random.uniform(0.1, 0.4)
    page = Image.new("RGB", (int(right + 2 * before), int(bottom - top + above + below)), "white")
    shade = int(random.integers(0, 90))
    ImageDraw.Draw(page).text((before, above - top), text, font=font, fill=(shade, shade, shade))
    places = [
        (before + font.getlength(text[:at]), before + font.getlength(text[: at + 1]))
        for at, character in enumerate(text)
        if character == LETTER
    ]
    scale = HEIGHT / page.height
    small = cv2.resize(
        np.asarray(page), (max(8, round(page.width * scale)), HEIGHT), interpolation=cv2.INTER_AREA
    )
    return small, [(first * scale, last * scale) for first, last in places]


def worn(
    picture: NDArray[np.uint8], places: list[tuple[float, float]], random: np.random.Generator
) -> tuple[NDArray[np.uint8], list[tuple[float, float]]]:
    if random.random() < 0.5:
        coarse = random.uniform(0.4, 1.0)
        smaller = cv2.resize(picture, None, fx=coarse, fy=coarse, interpolation=cv2.INTER_AREA)
        picture = cv2.resize(smaller, picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    if random.random() < 0.4:
        picture = cv2.GaussianBlur(picture, (0, 0), random.uniform(0.4, 1.2))
    noisy = picture + random.normal(0, random.uniform(0, 12), picture.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), places


def fed(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    width = -(-picture.shape[1] // 32) * 32
    filled = np.zeros((1, 3, HEIGHT, width), np.float32)
    filled[0, :, :, : picture.shape[1]] = picture.transpose(2, 0, 1) / 127.5 - 1
    return filled


def marked(scores: NDArray[np.float32], places: list[tuple[float, float]]) -> NDArray[np.bool_]:
    """The steps at which the letter ought to be said: in each place, the one least taken for a blank."""
    blank = scores[:, 0] - total(scores)
    wanted = np.zeros(len(scores), np.bool_)
    for first, last in places:
        reach = range(max(0, int(first / PIXELS)), min(len(wanted), int(np.ceil(last / PIXELS)) + 1))
        wanted[min(reach, key=lambda step: blank[step])] = True
    return wanted


if __name__ == "__main__":
    main(sys.argv[1:])
