// Drives ComfyUI's real frontend in headless Chromium. Prints one JSON line.
//   node frontend.cjs convert URL API.json UI.json      an API prompt becomes a UI graph, seeds fixed, laid out
//   node frontend.cjs check URL UI.json SHOT.png [run]  loads a UI graph; types, links, widgets; with `run`, queues it
// playwright-core is found through NODE_PATH, Chromium through CHROMIUM (default: /usr/bin/chromium).
const fs = require('fs')
const os = require('os')
const path = require('path')
const { chromium } = require('playwright-core')

const [mode, url, input, output, wantRun] = process.argv.slice(2)

async function open() {
  const profile = fs.mkdtempSync(path.join(os.tmpdir(), 'teasr-chromium-'))
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
    headless: true,
    viewport: { width: 1600, height: 900 },
    args: ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-sync']
  })
  const page = context.pages()[0] || (await context.newPage())
  const errors = []
  page.on('pageerror', (error) => errors.push(String(error)))
  // Nothing but the server: a test must not depend on the internet.
  await page.route('**/*', (route) => (route.request().url().startsWith(url) ? route.continue() : route.abort()))
  await page.goto(url)
  await page.waitForFunction(
    () => window.app?.graph && window.app.extensionManager && Object.keys(LiteGraph.registered_node_types).length > 50,
    null, { timeout: 120000 }
  )
  await page.evaluate(async (vue) => {
    await app.extensionManager.setting.set('Comfy.TutorialCompleted', true)
    await app.extensionManager.setting.set('LiteGraph.Canvas.MinFontSizeForLOD', 0)
    await app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)
  }, process.env.VUE_NODES === '1')
  return { context, page, profile, errors }
}

async function convert(page) {
  const api = JSON.parse(fs.readFileSync(input, 'utf8'))
  const graph = await page.evaluate(async (api) => {
    await app.loadApiJson(api, 'teasr')
    for (const node of app.graph.nodes) {
      const { models } = api[node.id]._meta  // what the frontend offers to download where it is missing
      if (models) node.properties.models = models
    }
    for (const node of app.graph.nodes)
      for (const widget of node.widgets || []) if (widget.name === 'control_after_generate') widget.value = 'fixed'
    app.graph.arrange(70)
    return app.graph.serialize()
  }, api)
  graph.nodes.forEach((node) => { node.pos = node.pos.map(Math.round); node.size = Array.from(node.size, Math.round) })
  delete graph.id
  fs.writeFileSync(output, JSON.stringify(graph, null, 1) + '\n')
  return { nodes: graph.nodes.length, links: graph.links.length }
}

async function check(page) {
  const ui = JSON.parse(fs.readFileSync(input, 'utf8'))
  const report = await page.evaluate(async (ui) => {
    await app.loadGraphData(ui)
    await app.extensionManager.command.execute('Comfy.Canvas.FitView')
    await new Promise((resolve) => setTimeout(resolve, 1500))
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
  }, ui)
  if (wantRun) {
    report.run = await page.evaluate(() => new Promise((resolve) => {
      for (const event of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(event, (message) => resolve({ event, detail: message.detail }))
      app.extensionManager.command.execute('Comfy.QueuePrompt')
    }))
    await page.waitForTimeout(2500)
    report.red = await page.evaluate(() => app.graph.nodes.filter((node) => node.has_errors).map((node) => node.type))
  }
  await page.screenshot({ path: output })
  return report
}

async function main() {
  const { context, page, profile, errors } = await open()
  try {
    const report = mode === 'convert' ? await convert(page) : await check(page)
    console.log(JSON.stringify({ ...report, errors }))
  } finally {
    await context.close()
    fs.rmSync(profile, { recursive: true, force: true })
  }
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1) })
