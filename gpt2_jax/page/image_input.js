// A picture from a file, by dropping or by pasting; it stays in the page until it is sent, made smaller if it is large.
const input = element.querySelector("input");
const drop = element.querySelector(".drop");
const preview = element.querySelector("img");
const words = element.querySelector(".words");
const LARGEST = 1024; // pixels of a side; models look at fewer

async function take(file) {
  if (!file) return;
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, LARGEST / Math.max(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const data = canvas.toDataURL("image/png");
    preview.src = data;
    preview.alt = `The chosen picture, ${file.name || "pasted"}`;
    preview.hidden = false;
    preview.classList.toggle("small", canvas.height < 96); // then its pixels are shown as they are
    words.textContent = `${file.name || "Pasted"}, ${bitmap.width} × ${bitmap.height}. Choose another, or drop or paste one.`;
    props.value = data;
  } catch {
    preview.hidden = true;
    props.value = "";
    words.textContent = "That file cannot be read as a picture. Take a PNG, JPEG, WebP or GIF.";
  }
}

input.addEventListener("change", () => take(input.files[0]));
drop.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer.files[0]);
});
element.addEventListener("paste", (event) => take(event.clipboardData.files[0]));
