// The hole is painted on a canvas above the photograph. gradio calls this once with `element`,
// `props` and `watch`; props.photograph and props.value are what the server sends: the photograph
// and the hole above it, as data URLs. What is painted here goes into props.value, as a PNG.
const photo = element.querySelector("img"), hole = element.querySelector("canvas")
const brush = element.querySelector(".brush"), width = element.querySelector("input")
const pen = hole.getContext("2d"), past = []
let at = null, down = false, erasing = false

async function show() {
  photo.src = props.photograph
  await photo.decode()
  hole.width = photo.naturalWidth
  hole.height = photo.naturalHeight
  photo.parentNode.style.setProperty("--ratio", hole.width / hole.height)
  past.length = 0
  at = {x: hole.width / 2, y: hole.height / 2}
  await draw(props.value)
}

async function draw(url) {
  const layer = new Image()
  if (url) {
    layer.src = url
    await layer.decode()
  }
  if (url === props.value) {                             // not undone or cleared in the meantime
    pen.clearRect(0, 0, hole.width, hole.height)
    if (url) pen.drawImage(layer, 0, 0)
  }
  element.dataset.shown = Number(element.dataset.shown || 0) + 1
}

function line(to) {
  pen.globalCompositeOperation = erasing ? "destination-out" : "source-over"
  pen.lineCap = pen.lineJoin = "round"
  pen.strokeStyle = props.paint
  pen.lineWidth = width.value
  pen.beginPath()
  pen.moveTo(at.x, at.y)
  pen.lineTo(to.x, to.y)
  pen.stroke()
  pen.globalCompositeOperation = "source-over"
  at = to
}

const remember = () => past.push(props.value)
const keep = () => props.value = hole.toDataURL("image/png")
const scale = () => hole.width / hole.clientWidth
const place = event => ({x: event.offsetX * scale(), y: event.offsetY * scale()})

hole.addEventListener("pointerdown", event => {
  if (event.button) return
  hole.setPointerCapture(event.pointerId)
  remember()
  down = true
  at = place(event)
  line(at)
})
hole.addEventListener("pointermove", event => { if (down) line(place(event)) })
for (const end of ["pointerup", "pointercancel"])
  hole.addEventListener(end, () => { if (down) keep(); down = false })

hole.addEventListener("keydown", event => {
  const ways = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}
  const [x, y] = ways[event.key] || [0, 0]
  if (!x && !y) return
  event.preventDefault()
  const step = Math.max(width.value / 3, 4)
  const to = {x: Math.min(Math.max(at.x + x * step, 0), hole.width),
              y: Math.min(Math.max(at.y + y * step, 0), hole.height)}
  if (event.shiftKey) {
    remember()
    line(to)
    keep()
  }
  at = to
  const side = width.value / scale()
  brush.hidden = false
  brush.style.cssText = `left: ${at.x / scale()}px; top: ${at.y / scale()}px; width: ${side}px`
})
hole.addEventListener("blur", () => brush.hidden = true)

element.addEventListener("click", event => {
  const what = event.target.dataset?.do
  if (what == "erase") event.target.setAttribute("aria-pressed", erasing = !erasing)
  if (what == "clear") {
    remember()
    draw(props.value = "")
  }
  if (what == "undo" && past.length) draw(props.value = past.pop())
})

watch(["photograph", "value"], show)
show()
