// Builds air_executor/web/static/air_executor.js: `npm ci && npm run build`.
// The first line of the result has the digest of all sources. A test compares it, so that nobody forgets to build.
import { build } from "esbuild";
import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";

const SOURCES = ["package-lock.json", "build.mjs", ...readdirSync("src").sort().map((name) => `src/${name}`)];
const digest = createHash("sha256");
for (const name of SOURCES) digest.update(`${name}\n`).update(readFileSync(name));

await build({
  entryPoints: ["src/main.js"],
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  loader: { ".css": "text" },
  banner: {
    js: `/* AirExecutor, Apache-2.0; sources ${digest.digest("hex")}. Contains preact (MIT), htm (Apache-2.0) and uPlot (MIT): see LICENSES.txt */`,
  },
  outfile: "../air_executor/web/static/air_executor.js",
});

const licences = ["htm", "preact", "uplot"].map((name) => {
  const { version, license } = JSON.parse(readFileSync(`node_modules/${name}/package.json`));
  return `${name} ${version} (${license})\n\n${readFileSync(`node_modules/${name}/LICENSE`, "utf8")}`;
});
writeFileSync("../air_executor/web/static/LICENSES.txt", licences.join("\n\n"));
