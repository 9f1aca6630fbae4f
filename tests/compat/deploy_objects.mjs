// Checks objects of Kubernetes by what @kubernetes-models makes from each project's own definitions of its resources:
// the schema (types, ranges, patterns, required fields) and, since a schema lets unknown fields pass, the TypeScript
// types. Reads `[{name, document}]` as JSON, writes a list of problems for each.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import ts from "typescript";

const PACKAGES = {
  "gateway.networking.k8s.io": "gateway-api",
  "keda.sh": "keda",
  "monitoring.coreos.com": "prometheus-operator",
};
const OPTIONS = {
  module: ts.ModuleKind.NodeNext,
  moduleResolution: ts.ModuleResolutionKind.NodeNext,
  target: ts.ScriptTarget.ES2022,
  noEmit: true,
  skipLibCheck: true,
  strict: true,
  types: [],
};

const moduleOf = ({ apiVersion, kind }) => `@kubernetes-models/${PACKAGES[apiVersion.split("/")[0]]}/${apiVersion}/${kind}`;

async function schemaProblems(document) {
  try {
    new (await import(moduleOf(document)))[document.kind](document).validate();
    return [];
  } catch (error) {
    return [error.message];
  }
}

function typeProblems(documents) {
  const here = (idx) => fileURLToPath(new URL(`object_${idx}.ts`, import.meta.url));
  const sources = new Map(
    documents.map((document, idx) => [
      here(idx),
      `import type { I${document.kind} } from "${moduleOf(document)}";\n` +
        `export const checked: I${document.kind} = ${JSON.stringify(document)};\n`,
    ]),
  );
  const host = ts.createCompilerHost(OPTIONS);
  const { fileExists, getSourceFile, readFile } = host;
  host.fileExists = (file) => sources.has(file) || fileExists(file);
  host.readFile = (file) => sources.get(file) ?? readFile(file);
  host.getSourceFile = (file, ...rest) =>
    sources.has(file) ? ts.createSourceFile(file, sources.get(file), ...rest) : getSourceFile(file, ...rest);
  const program = ts.createProgram([...sources.keys()], OPTIONS, host);
  return [...sources.keys()].map((file) =>
    ts
      .getPreEmitDiagnostics(program, program.getSourceFile(file))
      .map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, "\n")),
  );
}

function version(name) {
  return createRequire(import.meta.url)(`./node_modules/@kubernetes-models/${name}/package.json`).version;
}

const documents = JSON.parse(readFileSync(0, "utf8"));
const types = typeProblems(documents);
const problems = [];
for (const [idx, document] of documents.entries()) problems.push([...(await schemaProblems(document)), ...types[idx]]);
const versions = Object.fromEntries(Object.entries(PACKAGES).map(([group, name]) => [group, `${name} ${version(name)}`]));
process.stdout.write(JSON.stringify({ problems, versions }));
