// What a user sees beside the graph: templates, help, names, blueprints, the slider, App mode, the node library.
// Each is (page, input, folder of the screenshots) -> a report.
const fs = require('fs')
const path = require('path')
const { arrange, ROOM } = require('./layout.cjs')
const { load, run } = require('./page.cjs')

const readJson = (file) => JSON.parse(fs.readFileSync(file, 'utf8'))
const shot = (page, folder, name) => page.screenshot({ path: path.join(folder, `${name}.png`) })
const OURS = (info) => info.python_module === 'custom_nodes.teasr' && !info.dev_only

// The template browser: what it lists under the pack's name, whether thumbnails load, what a click on NAME opens.
async function templates(page, name, shots) {
  await page.evaluate(() => app.extensionManager.command.execute('Comfy.BrowseTemplates'))
  await page.getByRole('dialog').getByText('teasr', { exact: true }).click()
  await page.getByTestId(`template-workflow-${name}`).waitFor()
  const listed = []
  for (const card of await page.locator('[data-testid^="template-workflow-"]').all()) {
    await card.scrollIntoViewIfNeeded() // a card holds its thumbnail only while it is seen
    await page.waitForTimeout(1000)
    listed.push(await card.evaluate((element) => ({
      name: element.dataset.testid.slice('template-workflow-'.length),
      thumbnails: [...element.querySelectorAll('img')].map((image) => [image.naturalWidth, image.naturalHeight])
    })))
  }
  await shot(page, shots, 'templates')
  await page.getByTestId(`template-workflow-${name}`).click()
  await page.waitForFunction(() => app.graph.nodes.some((node) => node.type.startsWith('TEASR')))
  await page.waitForTimeout(1500)
  return { listed, opened: await page.evaluate(() => app.graph.nodes.map((node) => node.type)) }
}

// The Info panel of each of our nodes: its heading, its text, its pictures. `input` is not used.
async function help(page, _input, shots) {
  const ids = await page.evaluate(async (OURS) => Object.values(await app.api.getNodeDefs())
    .filter(new Function(`return ${OURS}`)()).map((info) => info.name), OURS.toString())
  const pages = {}
  for (const id of ids) {
    await page.evaluate((id) => {
      app.graph.clear()
      const node = LiteGraph.createNode(id)
      app.graph.add(node)
      node.pos = [200, 200]
      app.canvas.selectItems([node])
    }, id)
    if (!Object.keys(pages).length) await openInfo(page)
    // The page is fetched: wait until the panel shows this node's, or says that there is none.
    await page.waitForFunction((id) => {
      const title = LiteGraph.registered_node_types[id].title
      const panel = document.querySelector('.node-help-content')
      return panel?.innerText.includes(title) || panel?.querySelector('.fallback-content')
    }, id)
    await page.waitForTimeout(1500)
    pages[id] = await page.evaluate(() => {
      const panel = document.querySelector('.node-help-content')
      return {
        heading: panel.querySelector('h1')?.innerText, text: panel.innerText,
        isFallback: Boolean(panel.querySelector('.fallback-content')),
        pictures: [...panel.querySelectorAll('img')].map((image) => [image.getAttribute('src'), image.naturalWidth])
      }
    })
  }
  await page.evaluate(() => app.canvas.selectItems(app.graph.nodes))
  await shot(page, shots, 'help')
  return { pages }
}

// Clicks the info button above the selected node. The frontend may miss a selection that is made while it still starts.
async function openInfo(page) {
  const button = page.getByTestId('info-button')
  for (let tries = 0; tries < 30 && !(await button.isVisible()); tries++) {
    await page.waitForTimeout(1000)
    await page.evaluate(() => {
      app.canvas.deselectAll()
      app.canvas.selectItems(app.graph.nodes)
    })
    await page.waitForTimeout(1000)
  }
  await button.click({ timeout: 30000 })
}

// Titles and labels of every one of our nodes, as drawn. `input` is a UI graph for the screenshot.
async function names(page, input, shots) {
  const nodes = await page.evaluate(async (OURS) => {
    const ours = Object.values(await app.api.getNodeDefs()).filter(new Function(`return ${OURS}`)())
    return Object.fromEntries(ours.map(({ name }) => {
      const node = LiteGraph.createNode(name)
      return [name, {
        title: node.title,
        widgets: Object.fromEntries((node.widgets || []).map((widget) => [widget.name, widget.label ?? widget.name])),
        inputs: Object.fromEntries(node.inputs.map((slot) => [slot.name, slot.label ?? slot.localized_name])),
        outputs: node.outputs.map((slot) => slot.label ?? slot.localized_name)
      }]
    }))
  }, OURS.toString())
  await load(page, readJson(input))
  await shot(page, shots, 'names')
  return { nodes, titles: await page.evaluate(() => app.graph.nodes.map((node) => node.title)) }
}

// Puts a subgraph blueprint of ours between Load Image and Save Image and runs it. `input` is its name.
async function insert(page, name, shots) {
  const found = await page.evaluate(async (name) => {
    const entries = Object.values(await app.api.getGlobalSubgraphs())
    const entry = entries.find((entry) => entry.name === name)
    await app.loadGraphData(JSON.parse(await entry.data))
    const [node] = app.graph.nodes
    const source = LiteGraph.createNode('LoadImage')
    const target = LiteGraph.createNode('SaveImage')
    for (const other of [source, target]) app.graph.add(other)
    source.widgets.find((widget) => widget.name === 'image').value = 'example.png'
    source.connect(0, node, 0)
    node.connect(0, target, 0)
    return {
      pack: entry.info.node_pack, title: node.title,
      widgets: node.widgets.map((widget) => [widget.label ?? widget.name, widget.value]),
      inputs: node.inputs.map((slot) => slot.name)
    }
  }, name)
  await page.evaluate(arrange, ROOM)
  await page.evaluate(() => app.extensionManager.command.execute('Comfy.Canvas.FitView'))
  const result = await run(page, () => page.getByTestId('queue-button').click())
  await shot(page, shots, 'blueprint')
  return { ...found, run: result }
}

// Loads a UI graph, runs it, drags the slider `steps` to 8 with the mouse, presses Run: both results.
async function slider(page, input, shots) {
  await load(page, readJson(input))
  const press = () => page.getByTestId('queue-button').click()
  const steps = () => page.evaluate(() => {
    const widgets = app.graph.nodes.flatMap((node) => node.widgets || [])
    return widgets.find((widget) => widget.name === 'steps').value
  })
  const first = { steps: await steps(), ...(await run(page, press)) }
  await shot(page, shots, 'slider_before')
  const thumb = page.locator('[data-slot="slider-thumb"], [role="slider"]').first()
  const track = thumb.locator('xpath=ancestor::*[@data-slot="slider" or @data-orientation][last()]')
  const [from, rail] = [await thumb.boundingBox(), await track.boundingBox()]
  const y = from.y + from.height / 2
  await page.mouse.move(from.x + from.width / 2, y)
  await page.mouse.down()
  // Along the rail, a pixel at a time as a hand does, until it says 8.
  for (let x = from.x; x < rail.x + rail.width && (await steps()) < 8; x += 1) await page.mouse.move(x, y)
  await page.mouse.up()
  const second = { steps: await steps(), ...(await run(page, press)) }
  await shot(page, shots, 'slider_after')
  // Of the pixels, not the file: a PNG of ComfyUI's holds the workflow too.
  const pixels = (result) => page.evaluate(async (images) => Promise.all(images.map(async (image) => {
    const reply = await fetch(app.api.apiURL(`/view?${new URLSearchParams(image)}`))
    const bitmap = await createImageBitmap(await reply.blob())
    const paper = new OffscreenCanvas(bitmap.width, bitmap.height).getContext('2d')
    paper.drawImage(bitmap, 0, 0)
    return [bitmap.width, bitmap.height, ...paper.getImageData(0, 0, bitmap.width, bitmap.height).data.slice(0, 4096)]
  })), Object.values(result.outputs).flatMap((output) => output.images || []))
  return { first: { ...first, pixels: await pixels(first) }, second: { ...second, pixels: await pixels(second) } }
}

// App mode: the graph is hidden, its chosen widgets and results stay. Loads a UI graph, goes there, presses Run.
async function appMode(page, input, shots) {
  await load(page, readJson(input))
  const opensAsGraph = !(await page.getByTestId('linear-widgets').isVisible())
  await page.evaluate(() => app.extensionManager.command.execute('Comfy.ToggleLinear'))
  await page.getByTestId('linear-widgets').waitFor()
  const skip = page.getByText('Skip', { exact: true }) // of the frontend's own tour
  await skip.click({ timeout: 10000 }).catch(() => {})
  const widgets = await page.getByTestId('linear-widgets').getByTestId('builder-widget-label').allInnerTexts()
  const result = await run(page, () => page.getByTestId('linear-run-button-icon').click())
  const picture = page.getByTestId('linear-outputs').locator('img').first()
  await picture.waitFor()
  const shown = await page.evaluate(() =>
    [...document.querySelectorAll('[data-testid="linear-center-panel"] img')].map((image) => image.naturalWidth))
  await shot(page, shots, 'app_mode')
  return { opensAsGraph, widgets, run: result, shown }
}

// The node library searched for `text`: the path of every entry it lists, as [folder, ..., name].
async function library(page, text, shots) {
  await page.evaluate(() => {
    app.graph.clear()
    return app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library')
  })
  await page.getByPlaceholder(/./).first().fill(text)
  await page.getByRole('treeitem').filter({ hasText: 'TEASR Compare Steps' }).waitFor()
  const items = await page.evaluate(() => [...document.querySelectorAll('[role=treeitem]')]
    .map((item) => [Number(item.getAttribute('aria-level')), item.innerText.trim()]))
  await shot(page, shots, 'library')
  let path = []
  const paths = items.map(([level, name]) => (path = [...path.slice(0, level - 1), name]))
  return { paths }
}

module.exports = { templates, help, names, insert, slider, app: appMode, library }
