// What outputs mean, by task: as zaq.use.answers and zaq.evaluate.boxes have it. read -> answer, draw on the picture, show beside it.

const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const percent = (p) => `${(100 * p).toFixed(1)} %`;
export const colour = (number) => `hsl(${((0.02 + number * 0.618034) % 1) * 360} 85% 50%)`;

function nameOf(number, of, names) {
  const known = names.length === of + 1 ? names.slice(1) : names; // the first may be a background
  return known.length === of ? known[number] : `class ${number}`;
}

function softmax(logits) {
  const sum = logits.reduce((a, b) => a + b, 0);
  if (logits.every((v) => v >= 0) && Math.abs(sum - 1) < 1e-3) return [...logits];
  const most = Math.max(...logits);
  const odds = Array.from(logits, (v) => Math.exp(v - most));
  const total = odds.reduce((a, b) => a + b);
  return odds.map((v) => v / total);
}

function node(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// A line: a name, our value and the float network's, and bars under them.
function row(name, ours, theirs, text = percent, chip = null) {
  const made = node("div", "row");
  const label = node("span", "name");
  if (chip) label.append(Object.assign(node("i", "chip"), { style: `background:${chip}` }));
  label.append(name);
  const value = node("span", "value", text(ours));
  if (theirs !== undefined) value.append(" ", node("small", "", text(theirs)));
  made.append(label, value);
  for (const [share, kind] of [[ours, "track"], [theirs, "track thin float"]]) {
    if (share === undefined) continue;
    const track = node("div", kind);
    const bar = node("i", "");
    bar.style.width = `${Math.max(0, Math.min(100, 100 * share))}%`;
    track.append(bar);
    made.append(track);
  }
  return made;
}

function keys(facts) {
  const made = node("p", "keys");
  for (const [name, kind] of [[facts.bits, ""], ["float", "float"]]) {
    const key = node("span", kind);
    key.append(node("i", ""), name);
    made.append(key);
  }
  return made;
}

const classification = {
  read: ([output]) => softmax(output.data),
  show(place, ours, theirs, { names, bits }) {
    const best = (p) => p.map((_, i) => i).sort((a, b) => p[b] - p[a]);
    const shown = [...new Set([...best(ours).slice(0, 5), ...(theirs ? best(theirs).slice(0, 1) : [])])];
    const rows = shown.map((i) => row(nameOf(i, ours.length, names), ours[i], theirs?.[i]));
    place.replaceChildren(...(theirs ? [keys({ bits })] : []), ...rows);
  },
};

function yolov3(outputs, { decode, input: [, height, width] }) {
  const found = [];
  outputs.forEach(({ data, dims: [, channels, rows, columns] }, h) => {
    const { anchors, scale_x_y: s = 1 } = decode.heads[h];
    const each = channels / anchors.length;
    const at = (a, k, y, x) => data[((a * each + k) * rows + y) * columns + x];
    anchors.forEach(([w, tall], a) => {
      for (let y = 0; y < rows; y++)
        for (let x = 0; x < columns; x++) {
          const object = sigmoid(at(a, 4, y, x));
          const cx = (sigmoid(at(a, 0, y, x)) * s - (s - 1) / 2 + x) / columns;
          const cy = (sigmoid(at(a, 1, y, x)) * s - (s - 1) / 2 + y) / rows;
          const size = [(Math.exp(Math.min(at(a, 2, y, x), 20)) * w) / width, (Math.exp(Math.min(at(a, 3, y, x), 20)) * tall) / height];
          const scores = Array.from({ length: each - 5 }, (_, k) => object * sigmoid(at(a, 5 + k, y, x)));
          found.push({ centre: [cx, cy], size, scores });
        }
    });
  });
  return found;
}

function ssd([{ data: t }, { data: logits, dims: [, count, classes] }], { decode, input: [, height, width] }) {
  const [v0, v1] = decode.variances ?? [0.1, 0.2];
  const priors = decode.heads.flatMap(({ grid: [rows, columns], boxes, step }) => {
    const [dy, dx] = step ? [step / height, step / width] : [1 / rows, 1 / columns];
    return Array.from({ length: rows * columns }, (_, i) =>
      boxes.map(([w, h]) => [((i % columns) + 0.5) * dx, (Math.floor(i / columns) + 0.5) * dy, w, h]),
    ).flat();
  });
  return priors.slice(0, count).map(([x, y, w, h], i) => ({
    centre: [t[4 * i] * v0 * w + x, t[4 * i + 1] * v0 * h + y],
    size: [Math.exp(Math.min(t[4 * i + 2] * v1, 20)) * w, Math.exp(Math.min(t[4 * i + 3] * v1, 20)) * h],
    scores: softmax(logits.subarray(i * classes, (i + 1) * classes)).slice(1),
  }));
}

function overlap(a, b) {
  const side = (i) => Math.max(0, Math.min(a.box[i + 2], b.box[i + 2]) - Math.max(a.box[i], b.box[i]));
  const area = ({ box: [x1, y1, x2, y2] }) => (x2 - x1) * (y2 - y1);
  const both = side(0) * side(1);
  return both / (area(a) + area(b) - both || 1);
}

const detection = {
  read(outputs, facts, [left, top, width, height]) {
    const candidates = { yolov3, ssd }[facts.decode.kind](outputs, facts);
    const clip = (v) => Math.max(0, Math.min(1, v));
    const found = candidates.flatMap(({ centre: [x, y], size: [w, h], scores }) =>
      scores.flatMap((score, number) => {
        if (score < facts.score) return [];
        const [x1, y1, x2, y2] = [x - w / 2, y - h / 2, x + w / 2, y + h / 2].map(clip);
        return [{ number, score, name: nameOf(number, scores.length, facts.names), box: [left + x1 * width, top + y1 * height, left + x2 * width, top + y2 * height] }];
      }),
    );
    found.sort((a, b) => b.score - a.score);
    const kept = [];
    for (const one of found)
      if (!kept.some((better) => better.number === one.number && overlap(better, one) > (facts.decode.nms ?? 0.45))) kept.push(one);
    return kept;
  },
  draw(canvas, boxes) {
    const pen = canvas.getContext("2d");
    const unit = Math.max(canvas.width, canvas.height) / 600;
    pen.font = `600 ${13 * unit}px system-ui, sans-serif`;
    for (const { box: [x1, y1, x2, y2], name, score, number } of [...boxes].reverse()) {
      pen.strokeStyle = pen.fillStyle = colour(number);
      pen.lineWidth = 2.5 * unit;
      pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
      const text = `${name} ${Math.round(100 * score)} %`;
      const high = y1 < 20 * unit ? y1 : y1 - 19 * unit;
      pen.fillRect(x1 - 1.25 * unit, high, pen.measureText(text).width + 10 * unit, 19 * unit);
      pen.fillStyle = "white";
      pen.fillText(text, x1 + 4 * unit, high + 14 * unit);
    }
  },
  show(place, ours, theirs, { bits }) {
    if (!ours.length && !theirs?.length) return place.replaceChildren(node("p", "hint", "Nothing that the network knows."));
    const left = [...(theirs ?? [])]; // each of the float network's boxes stands beside one of ours at most
    const rows = ours.map((box) => {
      const twin = left.findIndex((other) => other.number === box.number && overlap(other, box) > 0.5);
      const score = twin < 0 ? undefined : left.splice(twin, 1)[0].score;
      return row(box.name, box.score, theirs ? score ?? 0 : undefined, percent, colour(box.number));
    });
    rows.push(...left.map((box) => row(box.name, 0, box.score, percent, colour(box.number))));
    place.replaceChildren(...(theirs ? [keys({ bits })] : []), ...rows);
  },
};

const segmentation = {
  read([{ data, dims: [, channels, height, width] }]) {
    const classes = new Uint16Array(height * width);
    for (let i = 0; i < classes.length; i++) {
      let best = 0;
      if (channels === 1) best = data[i] > 0 ? 1 : 0;
      else for (let c = 1; c < channels; c++) if (data[c * classes.length + i] > data[best * classes.length + i]) best = c;
      classes[i] = best;
    }
    const shares = new Map();
    for (const c of classes) shares.set(c, (shares.get(c) ?? 0) + 1 / classes.length);
    return { classes, height, width, shares, total: Math.max(channels, 2) };
  },
  draw(canvas, { classes, height, width, total }, _, [left, top, w, h]) {
    const table = new OffscreenCanvas(total, 1).getContext("2d");
    for (let c = 1; c < total; c++) {
      table.fillStyle = colour(c);
      table.fillRect(c, 0, 1, 1);
    }
    const colours = new Uint32Array(table.getImageData(0, 0, total, 1).data.buffer);
    const pixels = Uint32Array.from(classes, (c) => colours[c]);
    const mask = new OffscreenCanvas(width, height);
    mask.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), width, height), 0, 0);
    const over = canvas.getContext("2d");
    over.globalAlpha = 0.55;
    over.drawImage(mask, left, top, w, h);
    over.globalAlpha = 1;
  },
  show(place, ours, theirs, { names, bits }) {
    const all = [...new Set([...ours.shares.keys(), ...(theirs?.shares.keys() ?? [])])];
    all.sort((a, b) => (ours.shares.get(b) ?? 0) - (ours.shares.get(a) ?? 0));
    const rows = all.map((c) =>
      row(nameOf(c, ours.total, names), ours.shares.get(c) ?? 0, theirs && (theirs.shares.get(c) ?? 0), percent, c ? colour(c) : "transparent"),
    );
    place.replaceChildren(...(theirs ? [keys({ bits })] : []), ...rows);
  },
};

const image = {
  read([{ data, dims: [, channels, height, width] }], { mean, std, order }) {
    const bytes = new Uint8ClampedArray(4 * height * width).fill(255);
    for (let c = 0; c < 3; c++) {
      const from = channels === 1 ? 0 : order === "bgr" ? 2 - c : c;
      for (let i = 0; i < height * width; i++) bytes[4 * i + c] = 255 * (data[from * height * width + i] * std[from] + mean[from]);
    }
    return new ImageData(bytes, width, height);
  },
  show(place, ours, theirs, { bits }) {
    const pair = node("div", "pair");
    for (const [name, picture] of [[bits, ours], ["float", theirs]]) {
      if (!picture) continue;
      const canvas = Object.assign(node("canvas", ""), { width: picture.width, height: picture.height });
      canvas.getContext("2d").putImageData(picture, 0, 0);
      const part = node("div", "");
      part.append(canvas, node("span", "", name));
      pair.append(part);
    }
    place.replaceChildren(pair);
  },
};

const embedding = {
  read: ([{ data }]) => data,
  show(place, ours, theirs) {
    const dot = (a, b) => a.reduce((sum, v, i) => sum + v * b[i], 0);
    const rows = [node("p", "hint", `${ours.length} numbers, from ${Array.from(ours.slice(0, 4), (v) => v.toFixed(3)).join(", ")} on`)];
    if (theirs) rows.unshift(row("cosine with float", dot(ours, theirs) / Math.sqrt(dot(ours, ours) * dot(theirs, theirs)), undefined, (v) => v.toFixed(4)));
    place.replaceChildren(...rows);
  },
};

export const READERS = { classification, detection, segmentation, image, embedding };
