// The eight classes: order, words, and the keys that choose them. Colours stand in page.css.

export const CLASSES = [
  "basophil",
  "eosinophil",
  "erythroblast",
  "immature_granulocyte",
  "lymphocyte",
  "monocyte",
  "neutrophil",
  "platelet",
];

/** Those of the white-cell differential; the others are counted per 100 white cells. */
export const WHITE = CLASSES.filter((name) => name !== "erythroblast" && name !== "platelet");

export const NOT_A_CELL = "not_a_cell";

/** What an image out of domain shows. */
export const NO_CELL_TYPE = "no known cell type";

/** A class as it is written in a sentence. */
export const inWords = (name) => String(name).replaceAll("_", " ");

/** The CSS class that carries a cell class's colour. */
export const colour = (name) => (CLASSES.includes(name) ? `c-${name.replaceAll("_", "-")}` : "c-none");
