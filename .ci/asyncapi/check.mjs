// Reads an AsyncAPI document with what it refers to, and prints what the parser has to say about it: node check.mjs FILE
import { Parser, fromFile } from "@asyncapi/parser";

const file = process.argv[2];
const { document, diagnostics } = await fromFile(new Parser(), file).parse();
const severities = ["error", "warning", "information", "hint"];
for (const d of diagnostics) {
  console.error(`${d.source ?? file}:${d.range.start.line + 1}: ${severities[d.severity]} ${d.code}: ${d.message} (${d.path.join(".")})`);
}
if (!document || diagnostics.length > 0) process.exit(1);
console.log(`${file}: AsyncAPI ${document.version()}, ${document.channels().length} channels, ${document.allMessages().length} messages, as it should be`);
