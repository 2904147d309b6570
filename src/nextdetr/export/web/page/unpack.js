// Single-file page: turn its modules into blob URLs, and start the page.
{
  const part = (name) => document.getElementById(`file:${name}`).textContent;

  /** Start the last of these modules, [name, source] each, in dependency order. */
  const run = (modules) => {
    const addresses = {};
    for (const [name, source] of modules) {
      const linked = name.endsWith('.mjs') ? source : source.replace(/ from '[./]+(?:runtime\/)?([\w.-]+)'/g, (_, other) => ` from '${addresses[other]}'`);
      addresses[name] = URL.createObjectURL(new Blob([linked], { type: 'text/javascript' }));
    }
    return import(addresses[modules.at(-1)[0]]);
  };

  globalThis.nextdetrFile = {
    /** A worker of a page on disk cannot load the page's blob URLs: it makes its own, and queues messages meanwhile. */
    worker: () => {
      const source = `const early = []; onmessage = (event) => early.push(event); (${run})(${part('worker')}).then(() => early.forEach((event) => onmessage(event)));`;
      return new Worker(URL.createObjectURL(new Blob([source], { type: 'text/javascript' })));
    },
    bytes: (name) => {
      const packed = Uint8Array.from(atob(part(name)), (letter) => letter.charCodeAt(0));
      return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer();
    },
  };
  run(JSON.parse(part('page')));
}
