// Reads [{module, object}] from standard input and prints what is wrong with the objects, by the schema in each module.

import { readFileSync } from 'node:fs';

const wrong = [];
for (const { module, object } of JSON.parse(readFileSync(0, 'utf8'))) {
  const Model = (await import(module))[object.kind];
  try {
    new Model(object).validate();
  } catch (error) {
    wrong.push(`${object.kind} ${object.metadata.name}: ${error.message}`);
  }
}
console.log(JSON.stringify(wrong));
