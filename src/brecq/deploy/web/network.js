// Runs the float and the quantized network of this folder with onnxruntime-web.

const load = async (config) => {
  const ort = await import(new URL(config.runtime + "ort.wasm.min.mjs", location.href));
  ort.env.wasm.wasmPaths = new URL(config.runtime, location.href).href;
  ort.env.wasm.numThreads = 1;
  const session = (file) => ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
  return { ort, float: await session("float.onnx"), quantized: await session("quantized.onnx") };
};

// Outputs by name, and milliseconds. `pixels` is a Float32Array of the network's input, [1, 3, height, width].
const run = async (networks, which, pixels, shape) => {
  const session = networks[which];
  const input = new networks.ort.Tensor("float32", pixels, shape);
  const start = performance.now();
  const outputs = await session.run({ [session.inputNames[0]]: input });
  return { outputs, milliseconds: performance.now() - start, names: session.outputNames };
};

// Where a picture of this size is drawn in the network's input: left, top, width, height.
const frame = (preprocessing, width, height) => {
  const [rows, columns] = preprocessing.size;
  let scale;
  if (preprocessing.fit === "original") {
    scale = [1, 1];
  } else if (preprocessing.fit === "crop") {
    const target = preprocessing.resize;
    if (target === null) scale = [columns / width, rows / height];
    else if (Array.isArray(target)) scale = [target[1] / width, target[0] / height];
    else {
      const factor = (target / Math.min(rows, columns)) * Math.max(columns / width, rows / height);
      scale = [factor, factor];
    }
  } else {
    const factor = Math.min(columns / width, rows / height);
    scale = [factor, factor];
  }
  const size = [Math.round(width * scale[0]), Math.round(height * scale[1])];
  const centred = [Math.round((columns - size[0]) / 2), Math.round((rows - size[1]) / 2)];
  const middle = preprocessing.fit === "crop" || preprocessing.fit === "letterbox";
  return [...(middle ? centred : centred.map((offset) => Math.min(offset, 0))), ...size];
};

// The network's input, made of a picture.
const prepare = (preprocessing, picture, canvas) => {
  const [rows, columns] = preprocessing.size;
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = `rgb(${preprocessing.fill.map((value) => Math.round(255 * value)).join(" ")})`;
  context.fillRect(0, 0, columns, rows);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, ...frame(preprocessing, picture.width, picture.height));
  const bytes = context.getImageData(0, 0, columns, rows).data;
  const pixels = new Float32Array(3 * rows * columns);
  const order = preprocessing.color === "BGR" ? [2, 1, 0] : [0, 1, 2];
  for (let channel = 0; channel < 3; channel++) {
    for (let i = 0; i < rows * columns; i++) {
      const value = bytes[4 * i + order[channel]] / 255;
      pixels[channel * rows * columns + i] = (value - preprocessing.mean[channel]) / preprocessing.std[channel];
    }
  }
  return pixels;
};

// The largest scores of one sample as [class, probability].
const best = (scores, count) => {
  const largest = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  const exponentials = Array.from(scores, (score) => Math.exp(score - largest));
  const total = exponentials.reduce((a, b) => a + b, 0);
  const order = exponentials.map((_, index) => index).sort((a, b) => exponentials[b] - exponentials[a]);
  return order.slice(0, count).map((index) => [index, exponentials[index] / total]);
};

// Signal to noise of the quantized output against the float one, in decibels.
const decibels = (float, quantized) => {
  let signal = 0, noise = 0;
  for (let i = 0; i < float.length; i++) {
    signal += float[i] ** 2;
    noise += (float[i] - quantized[i]) ** 2;
  }
  return 10 * Math.log10(signal / noise);
};

export { best, decibels, frame, load, prepare, run };
