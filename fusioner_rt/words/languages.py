"""Words of other languages than English, as far as their letters or a list of everyday things tell them."""

import unicodedata

_THINGS = """
cat: katze gato gatto kat
dog: hund chien perro cachorro hond
horse: pferd cheval caballo cavallo cavalo paard
cow: kuh vache vaca mucca koe
sheep: schaf mouton oveja pecora ovelha schaap
bird: oiseau pajaro uccello passaro
fish: fisch poisson pez pesce peixe
person: mensch personne persona pessoa persoon
man: mann homme hombre uomo homem
woman: frau femme mujer donna mulher vrouw
child: enfant niño bambino criança
face: gesicht visage rostro viso gezicht
hand: main mano mão
hair: haar haare cheveux cabello capelli cabelo
house: haus maison casa huis
building: gebäude bâtiment edificio edificio prédio gebouw
window: fenster fenêtre ventana finestra janela raam
door: tür porte puerta porta deur
wall: wand mauer mur pared muro parede muur
floor: boden sol suelo pavimento chão vloer
street: straße strasse strada calle straat
car: voiture coche macchina carro
bicycle: fahrrad vélo bicicleta fiets
train: zug tren treno trem trein
airplane: flugzeug avión avion aereo avião vliegtuig
boat: boot bateau barco barca
chair: stuhl chaise silla sedia cadeira stoel
table: tisch mesa tavolo tafel
bed: bett lit cama letto
sofa: divano
lamp: lampe lámpara lampada lâmpada
book: buch livre libro livro boek
bottle: flasche bouteille botella bottiglia garrafa fles
glass: glas verre vaso bicchiere
cup: tasse taza tazza xícara kopje
plate: teller assiette plato piatto prato
knife: messer couteau cuchillo coltello faca
fork: gabel fourchette tenedor forchetta garfo vork
spoon: löffel cuillère cuchara cucchiaio colher lepel
apple: apfel pomme manzana mela maçã appel
bread: brot pain pan pane pão brood
flower: blume fleur flor fiore bloem
tree: baum arbre árbol albero árvore boom
grass: gras herbe hierba erba grama
sky: himmel ciel cielo céu lucht
water: wasser eau agua acqua água
mountain: berg montagne montaña montagna montanha
shirt: hemd chemise camisa camicia
trousers: hose pantalon pantalones pantaloni calças broek
shoe: schuh chaussure zapato scarpa sapato schoen
hat: hut chapeau sombrero cappello chapéu hoed
"""
_ENGLISH = {"main", "boot", "boom", "brood", "mensch", "hoed", "sol", "mur", "pain", "pan", "pane", "donna", "hut", "hose", "tasse", "persona",
            "porta", "plato", "sombrero", "livre", "flor", "ciel", "strada", "carro", "teller", "mann", "vaso", "mesa", "chemise",
            "chapeau", "visage", "hombre", "barca"}  # fmt: skip
"""Those of them that are English words, or names, too."""


def _plain(word: str) -> str:
    """Small letters without accents, as most text encoders read them."""
    letters = unicodedata.normalize("NFKD", word.casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


_ENGLISH_OF = {
    _plain(other): english
    for english, _, others in (line.partition(":") for line in _THINGS.split("\n") if line)
    for other in others.split()
    if other not in _ENGLISH
}


def english_of(word: str) -> str | None:
    """The English word for an everyday thing that is named in German, French, Spanish, Italian, Portuguese or Dutch."""
    return _ENGLISH_OF.get(_plain(word))


_SCRIPTS = {
    "CYRILLIC": "Cyrillic", "GREEK": "Greek", "ARABIC": "Arabic", "HEBREW": "Hebrew", "DEVANAGARI": "Devanagari",
    "BENGALI": "Bengali", "TAMIL": "Tamil", "THAI": "Thai", "HANGUL": "Korean", "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese", "CJK": "Chinese or Japanese", "ARMENIAN": "Armenian", "GEORGIAN": "Georgian",
}  # fmt: skip
"""By the first word of a letter's Unicode name."""


def script_of(word: str) -> str | None:
    """The script of a word, such as "Cyrillic"; None of Latin ones, and of a sign like alpha in "alpha ray"."""
    found = [_SCRIPTS.get(unicodedata.name(letter, "").partition(" ")[0]) for letter in word if letter.isalpha()]
    scripts = [script for script in found if script]
    return None if scripts in ([], ["Greek"]) else scripts[0]
