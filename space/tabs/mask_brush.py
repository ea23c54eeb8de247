"""A brush for masks: what is painted over an image, pixel by pixel of the model, by mouse, finger or keyboard."""

import gradio as gr
import numpy as np
from both_languages import Both
from request_checks import InvalidRequestError

_HELP = Both(
    "Paint over what is to be drawn anew. Keyboard: arrows move, space paints.",
    "涂抹要重新绘制的部分。键盘：方向键移动，空格键涂抹。",
)

_TEMPLATE = f"""
<div class="brush" style="aspect-ratio: ${{columns}} / ${{rows}}">
  <img class="pixels" src="${{picture}}" alt="">
  <canvas width="${{columns}}" height="${{rows}}" tabindex="0" role="img" aria-label="mask / 遮罩"></canvas>
</div>
<div class="brush-tools">
  <label>{Both("Brush", "画笔").html} <input class="thickness" type="range" min="1" max="30" value="10"></label>
  <label><input class="erase" type="checkbox"> {Both("Rub out", "橡皮").html}</label>
</div>
<p class="note">{_HELP.html}</p>
"""

# The value is one character for each pixel, row after row: 1 is painted. The element outlives what is drawn in it.
_SCRIPT = """
let stroke = null, cursor = null;
const canvas = () => element.querySelector('canvas');
const thickness = () => Number(element.querySelector('.thickness').value);
const cells = () => {
  const length = props.rows * props.columns;
  return (props.value && props.value.length === length ? props.value : '0'.repeat(length)).split('');
};
const show = (mask) => {
  const pen = canvas().getContext('2d');
  pen.clearRect(0, 0, props.columns, props.rows);
  pen.fillStyle = 'rgba(233, 64, 87, 0.75)';
  mask.forEach((on, i) => { if (on === '1') pen.fillRect(i % props.columns, Math.floor(i / props.columns), 1, 1); });
  if (cursor && document.activeElement === canvas()) {
    pen.fillStyle = 'rgba(255, 200, 0, 0.9)';
    pen.fillRect(cursor[0], cursor[1], 1, 1);
  }
};
const paint = (mask, x, y, on) => {
  const radius = Math.max(0, Math.round(Math.max(props.rows, props.columns) * thickness() / 200));
  for (let j = -radius; j <= radius; j++) for (let i = -radius; i <= radius; i++) {
    const [column, row] = [x + i, y + j];
    const inside = column >= 0 && row >= 0 && column < props.columns && row < props.rows;
    if (inside && i * i + j * j <= radius * radius + 0.5) mask[row * props.columns + column] = on;
  }
};
const place = (event) => {
  const box = canvas().getBoundingClientRect();
  return [Math.floor((event.clientX - box.left) / box.width * props.columns),
          Math.floor((event.clientY - box.top) / box.height * props.rows)];
};
const keep = (mask) => { props.value = mask.join(''); trigger('change'); };
element.addEventListener('pointerdown', (event) => {
  if (event.target !== canvas()) return;
  event.preventDefault();
  canvas().setPointerCapture(event.pointerId);
  canvas().focus();
  cursor = null;
  stroke = { mask: cells(), last: place(event), on: element.querySelector('.erase').checked ? '0' : '1' };
  paint(stroke.mask, ...stroke.last, stroke.on);
  show(stroke.mask);
});
element.addEventListener('pointermove', (event) => {
  if (!stroke) return;
  const [from, to] = [stroke.last, place(event)];
  const length = Math.max(1, Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]));
  for (let i = 1; i <= length; i++) {
    const at = (k) => Math.round(from[k] + (to[k] - from[k]) * i / length);
    paint(stroke.mask, at(0), at(1), stroke.on);
  }
  stroke.last = to;
  show(stroke.mask);
});
const end = () => { if (stroke) { const mask = stroke.mask; stroke = null; keep(mask); } };
element.addEventListener('pointerup', end);
element.addEventListener('pointercancel', end);
element.addEventListener('keydown', (event) => {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.target !== canvas() || (!moves[event.key] && event.key !== ' ')) return;
  event.preventDefault();
  cursor = cursor || [Math.floor(props.columns / 2), Math.floor(props.rows / 2)];
  const mask = cells();
  if (event.key === ' ') {
    const on = mask[cursor[1] * props.columns + cursor[0]] === '1' ? '0' : '1';
    paint(mask, ...cursor, on);
    keep(mask);
  } else {
    const clamp = (value, size) => Math.min(size - 1, Math.max(0, value));
    cursor = [clamp(cursor[0] + moves[event.key][0], props.columns), clamp(cursor[1] + moves[event.key][1], props.rows)];
  }
  show(mask);
});
element.addEventListener('focusout', () => show(cells()));
watch(['value', 'picture', 'rows', 'columns'], () => show(cells()));
show(cells());
"""


def mask_brush(picture: str, rows: int, columns: int, **properties) -> gr.HTML:
    """An image that can be painted over; its value is a text of H·W characters, `1` where it was painted.

    An update of it must give `picture`, `rows` and `columns`, or none of them.

    Args:
        picture (`str`): the address of the image.
        rows, columns (`int`): H and W of the model.
        properties: others of `gr.HTML`.
    """
    # A subclass would be tidier, but Gradio writes a file beside the source of each.
    shape = {"picture": picture, "rows": rows, "columns": columns}
    return gr.HTML("", html_template=_TEMPLATE, js_on_load=_SCRIPT, **shape, **properties)


def mask_of_text(text: object, size: tuple[int, int]) -> np.ndarray:
    """What was painted, as `numpy.ndarray` of `bool`, shape (H, W); nothing, for an empty text.

    Raises:
        InvalidRequestError: if it is no mask of this size.
    """
    height, width = size
    if text is None or text == "":
        return np.zeros(size, bool)
    if not isinstance(text, str) or len(text) != height * width or set(text) - {"0", "1"}:
        raise InvalidRequestError("The mask is not one of this model: paint again.", "遮罩与当前模型不符：请重新涂抹。")
    return (np.frombuffer(text.encode(), np.uint8) == ord("1")).reshape(size)


REGIONS = {
    "left": Both("Left half", "左半"),
    "right": Both("Right half", "右半"),
    "top": Both("Top half", "上半"),
    "bottom": Both("Bottom half", "下半"),
    "middle": Both("Middle", "中间"),
    "nothing": Both("Nothing", "清空"),
}


def region(name: str, size: tuple[int, int]) -> str:
    """A mask of one of [`REGIONS`], as the brush's value."""
    height, width = size
    mask = np.zeros(size, bool)
    slices = {
        "left": np.s_[:, : width // 2],
        "right": np.s_[:, width - width // 2 :],
        "top": np.s_[: height // 2],
        "bottom": np.s_[height - height // 2 :],
        "middle": np.s_[height // 4 : height - height // 4, width // 4 : width - width // 4],
    }
    if name in slices:
        mask[slices[name]] = True
    return "".join("01"[int(on)] for on in mask.ravel())
