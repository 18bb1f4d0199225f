// Runs a Python program in Pyodide under node, with `listen` in the place of a service worker.
//
//   npm install pyodide
//   node pyodide_driver.mjs PACKAGES PROGRAM
//
// PACKAGES: a folder with what the program imports: asap_core, attrs, cattrs and typing_extensions, as pip installs them,
// and pyodide_driver.py. In a browser, `await micropip.install("asap-sansio")` gets them.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [packages, program] = process.argv.slice(2);
const installed = createRequire(`${process.cwd()}/`).resolve("pyodide/pyodide.mjs");
const { loadPyodide } = await import(pathToFileURL(installed));
const pyodide = await loadPyodide();
pyodide.mountNodeFS("/packages", packages);
pyodide.runPython("import sys; sys.path.insert(0, '/packages')");

// Serves `answer`, a function from a Request to a Response, on a port of this machine. Resolves to its base URL.
function listen(answer) {
  const server = createServer(async (incoming, outgoing) => {
    const chunks = await incoming.toArray();
    const { method, headers, url } = incoming;
    const body = chunks.length ? Buffer.concat(chunks) : undefined;
    const response = await answer(new Request(`http://${headers.host}${url}`, { method, headers, body }));
    outgoing.writeHead(response.status, Object.fromEntries(response.headers));
    outgoing.end(Buffer.from(await response.arrayBuffer()));
  });
  return new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () => resolve(`http://127.0.0.1:${server.address().port}`));
  });
}

pyodide.globals.set("listen", listen);
await pyodide.runPythonAsync(readFileSync(program, "utf8"));
process.exit(0);
