// Asks ComfyUI's real frontend (page.cjs). Prints one JSON line.
//   node frontend.cjs convert URL API.json UI.json       an API prompt becomes a UI graph, seeds fixed, laid out
//   node frontend.cjs blueprint URL API.json OUT.json    an API prompt becomes a subgraph blueprint (blueprint.cjs)
//   node frontend.cjs check URL UI.json SHOT.png [run]   loads a UI graph; types, links, widgets; with `run`, queues it
//   node frontend.cjs check-all URL FOLDER SHOTS         the same of every *.json in a folder, by name
//   node frontend.cjs VIEW URL ARGUMENT SHOTS            what a function of views.cjs says: templates, help, names ...
// VUE_NODES=1 draws Nodes 2.0, LOCALE=zh speaks Chinese, PIXEL_RATIO=2 makes finer screenshots.
const fs = require('fs')
const path = require('path')
const { withPage, load, run } = require('./page.cjs')
const { arrange, ROOM } = require('./layout.cjs')
const { blueprint } = require('./blueprint.cjs')
const { addOrigin } = require('./origin.cjs')
const views = require('./views.cjs')

const [mode, url, input, output, wantRun] = process.argv.slice(2)
const options = { locale: process.env.LOCALE || 'en', vue: process.env.VUE_NODES === '1' }
const readJson = (file) => JSON.parse(fs.readFileSync(file, 'utf8'))
const writeJson = (file, value) => fs.writeFileSync(file, JSON.stringify(value, null, 1) + '\n')

async function convert(page) {
  const api = readJson(input)
  await page.evaluate(async (api) => {
    await app.loadApiJson(api, 'teasr')
    for (const node of app.graph.nodes) {
      const { models } = api[node.id]._meta // what the frontend offers to download where it is missing
      if (models) node.properties.models = models
      for (const widget of node.widgets || []) if (widget.name === 'control_after_generate') widget.value = 'fixed'
    }
  }, api)
  await page.evaluate(arrange, ROOM)
  const graph = await page.evaluate((api) => {
    // A node's `note` becomes a Markdown note under the first column: pictures grow further right.
    const left = Math.min(...app.graph.nodes.map((node) => node.pos[0]))
    const column = app.graph.nodes.filter((node) => node.pos[0] === left)
    const width = Math.max(300, ...column.map((node) => node.size[0]))
    const bottom = Math.max(...column.map((node) => node.pos[1] + node.size[1]))
    for (const { note } of Object.values(api).map((entry) => entry._meta)) {
      if (!note) continue
      const paper = LiteGraph.createNode('MarkdownNote')
      app.graph.add(paper)
      paper.widgets[0].value = note
      paper.pos = [left, bottom + 80]
      const lines = note.split('\n\n').map((text) => Math.ceil(text.length / 44))
      paper.size = [width, lines.reduce((height, count) => height + 12 + 16 * count, 60)]
    }
    return app.graph.serialize()
  }, api)
  graph.nodes.forEach((node) => { node.pos = node.pos.map(Math.round); node.size = Array.from(node.size, Math.round) })
  await addOrigin(page, graph.nodes)
  addApp(graph, api)
  delete graph.id
  writeJson(output, graph)
  return { nodes: graph.nodes.length, links: graph.links.length }
}

// App mode shows the widgets that a node's `_meta` lists as `app_inputs`, and the results of nodes with `app_output`.
// The graph itself still opens as a graph.
function addApp(graph, api) {
  const entries = Object.entries(api).map(([id, entry]) => [id, entry._meta])
  const inputs = entries.flatMap(([id, { app_inputs: names = [] }]) => names.map((name) => [id, name]))
  const outputs = entries.filter(([, meta]) => meta.app_output).map(([id]) => id)
  if (outputs.length) Object.assign(graph.extra, { linearData: { inputs, outputs }, linearMode: false })
}

async function check(page, file, shot, wantRun) {
  await load(page, readJson(file))
  const report = await page.evaluate(async () => {
    const nodes = app.graph.nodes
    const { output } = await app.graphToPrompt()
    return {
      missing: nodes.filter((node) => !(node.type in LiteGraph.registered_node_types)).map((node) => node.type),
      red: nodes.filter((node) => node.has_errors).map((node) => node.type),
      // Required sockets without a wire, as the frontend draws them.
      unwired: nodes.flatMap((node) => (node.inputs || [])
        .filter((slot) => slot.link == null && !slot.widget && slot.shape !== LiteGraph.GRID_SHAPE && slot.shape !== 7)
        .map((slot) => `${node.type}.${slot.name}`)),
      types: nodes.map((node) => node.type).sort(),
      widgets: Object.fromEntries(nodes.filter((node) => node.type.startsWith('TEASR')).map((node) =>
        [node.type, (node.widgets || []).map((widget) => [widget.name, widget.value])])),
      models: Object.fromEntries(nodes.filter((node) => node.properties.models)
        .map((node) => [node.type, node.properties.models])),
      prompt: output
    }
  })
  if (wantRun) {
    report.run = await run(page, () => page.evaluate(() => app.extensionManager.command.execute('Comfy.QueuePrompt')))
    report.red = await page.evaluate(() => app.graph.nodes.filter((node) => node.has_errors).map((node) => node.type))
  }
  await page.screenshot({ path: shot })
  return report
}

async function checkAll(page) {
  const reports = {}
  for (const file of fs.readdirSync(input).filter((name) => name.endsWith('.json')).sort()) {
    const name = path.basename(file, '.json')
    reports[name] = await check(page, path.join(input, file), path.join(output, `${name}.png`))
  }
  return { reports }
}

const MODES = {
  convert,
  check: (page) => check(page, input, output, wantRun),
  'check-all': checkAll,
  blueprint: async (page) => {
    const { graph, ...report } = await blueprint(page, readJson(input), path.basename(output, '.json'))
    writeJson(output, graph)
    return report
  },
  ...Object.fromEntries(Object.entries(views).map(([name, view]) => [name, (page) => view(page, input, output)]))
}

if (!(mode in MODES)) throw new Error(`mode is ${mode}: expected one of ${Object.keys(MODES).join(', ')}`)
withPage(url, options, MODES[mode]).then(
  (report) => { console.log(JSON.stringify(report)); process.exit(0) },
  (error) => { console.error(error); process.exit(1) }
)
