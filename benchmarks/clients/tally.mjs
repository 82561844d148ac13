// tally.py for Node: counts what holds and what does not, and says so in one line.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

function versionOf(name) {
  let folder = dirname(createRequire(import.meta.url).resolve(name));
  for (;;) {
    try {
      const about = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
      if (about.name === name) return about.version;
    } catch {}
    folder = dirname(folder);
  }
}

export class Tally {
  checks = 0;
  errors = 0;

  constructor(client) {
    this.client = `${client} ${versionOf(client)}`;
  }

  check(holds, told) {
    this.checks += 1;
    if (holds) return;
    this.errors += 1;
    console.error(`  wrong: ${told}`);
  }

  async calling(told, work) {
    this.checks += 1;
    try {
      await work();
    } catch (error) {
      this.errors += 1;
      console.error(`  failed: ${told}: ${String(error?.stack ?? error).slice(0, 600)}`);
    }
  }

  end() {
    console.log(`${this.client}: ${this.checks} checks, ${this.errors} errors`);
    process.exit(this.errors ? 1 : 0);
  }
}

export function address() {
  const [url, model] = process.argv.slice(2);
  if (model) return { url, model };
  console.error("usage: node FILE URL MODEL; benchmarks/clients/run.py gives both");
  process.exit(2);
}
