// Embeds texts with an exported folder, by the calls that its README shows.
// node embed.mjs FOLDER < batches.json > vectors.json: a list of lists of texts in, {fp32: rows, q8: rows} out.
import { AutoModel, AutoTokenizer, env } from "@huggingface/transformers";
import { readFileSync, writeFileSync } from "node:fs";

env.allowRemoteModels = false;
const [folder] = process.argv.slice(2);
const batches = JSON.parse(readFileSync(0, "utf-8"));
const tokenizer = await AutoTokenizer.from_pretrained(folder);
const vectors = {};
for (const dtype of ["fp32", "q8"]) {
  const model = await AutoModel.from_pretrained(folder, { dtype });
  vectors[dtype] = [];
  for (const texts of batches) {
    const inputs = await tokenizer(texts, { padding: true, truncation: true });
    const { sentence_embedding } = await model(inputs);
    vectors[dtype].push(...sentence_embedding.tolist());
  }
}
writeFileSync(1, JSON.stringify(vectors));
